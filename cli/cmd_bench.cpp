// SPDX-License-Identifier: Apache-2.0
// quadrille bench: decode and prefill of a model or of a true shape with random weights, as ratios to the ceilings of
// this machine.
#include <memory>
#include <thread>

#include "bench/verdict.h"
#include "cli/bench_gpu_report.h"
#include "cli/bench_measure.h"
#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/load_model.h"
#include "cli/progress.h"
#include "cli/ranks.h"
#include "cli/text_table.h"
#include "plan/known_shapes.h"

namespace quadrille::cli {
namespace {

struct BenchOptions {
  ModelOptions model;
  BenchPlan plan;
  std::string shape;
  int64_t layers = 0;
  int64_t vocabulary = 0;
  std::string group_size = "128";
  bool as_json = false;
  int64_t prefill = 0, decode = 0;  // 0: the default of the device
  std::vector<int64_t> batches = {1, 64};
  std::vector<int64_t> contexts;  // empty: the default of the device
};

GpuBenchOptions gpu_options(const BenchOptions& options) {
  GpuBenchOptions gpu;
  gpu.model = options.model;
  gpu.shape = options.shape;
  gpu.layers = options.layers;
  gpu.vocabulary = options.vocabulary;
  gpu.group_size = options.group_size;
  gpu.as_json = options.as_json;
  gpu.plan.batches = options.batches;
  if (!options.contexts.empty()) gpu.plan.context = options.contexts.front();
  if (options.prefill > 0) gpu.plan.prefill_tokens = options.prefill;
  if (options.decode > 0) gpu.plan.decode_tokens = options.decode;
  gpu.plan.rounds = options.plan.rounds;
  gpu.plan.seed = options.model.seed;
  return gpu;
}

Result<LoadedModel> make_random(Console& console, const BenchOptions& options, int64_t positions) {
  LoadedModel loaded;
  QD_TRY(loaded.pool, make_pool(console, options.model));
  loaded.ranks = options.model.ranks;
  QD_TRY(const model::ModelConfig config, plan::bench_shape(options.shape, options.layers, options.vocabulary));
  QD_TRY(model::LoadOptions load, make_load_options(console, options.model, *loaded.pool));
  load.default_positions = positions;
  load.max_positions = positions;
  Progress progress(console, "random weights", "bytes", options.model.quiet);
  load.progress = [&progress](const model::LoadProgress& at) {
    progress.update(static_cast<int64_t>(at.bytes_done), static_cast<int64_t>(at.bytes_total), at.module);
  };
  model::RandomModel weights;
  weights.group_size = options.group_size == "channel" ? 0 : std::stoll(options.group_size);
  weights.seed = options.model.seed + 1;
  QD_TRY(loaded.model, model::Model::random(config, weights, load));
  return loaded;
}

std::string subject_text(const BenchOptions& options, const model::ModelConfig& config) {
  if (options.shape.empty()) return options.model.folder;
  return fmt::format("{}, {} layers, vocabulary {}, random weights, group {}", options.shape, config.num_layers,
                     config.vocab_size, options.group_size);
}

// Verdicts are for the shapes that the targets are set for; a model that fits the caches has none.
std::string verdict_text(const BenchOptions& options, double ratio, double target) {
  if (options.shape.empty()) return "";
  return fmt::format("{} {:.0f} %", ratio >= target ? "pass" : "FAIL", 100 * target);
}

void print_table(Console& console, const BenchOptions& options, const LoadedModel& loaded, const BenchResult& result) {
  const BenchPlan& plan = options.plan;
  console.print("{} ({})\n\n", subject_text(options, loaded.model->config()), settings_text(loaded));
  TextTable table({"", ">tokens/s", ">ms", ">must", ">reached", ">ceiling", ">ratio", ">target"});
  for (const BenchSeries& decode : result.decode) {
    table.add_row({fmt::format("decode, context {}", decode.context),
                   fmt::format("{:.1f}", 1 / decode.median_seconds()),
                   fmt::format("{:.2f}", 1e3 * decode.median_seconds()),
                   fmt::format("read {:.1f} MB", decode.work / 1e6), fmt::format("{:.2f} GB/s", decode.reached() / 1e9),
                   fmt::format("{:.2f} GB/s", decode.ceiling / 1e9), fmt::format("{:.0f} %", 100 * decode.ratio()),
                   verdict_text(options, decode.ratio(), bench::decode_target(decode.context))});
  }
  const BenchSeries& prefill = result.prefill;
  const double target = bench::prefill_target(bench::dot_unit_of(loaded.model->backend()));
  table.add_row(
      {fmt::format("prefill, {} tokens", plan.prefill_tokens),
       fmt::format("{:.1f}", static_cast<double>(plan.prefill_tokens) / prefill.median_seconds()),
       fmt::format("{:.2f}", 1e3 * prefill.median_seconds()), fmt::format("do {:.2f} GFLOP", prefill.work / 1e9),
       fmt::format("{:.1f} GFLOP/s", prefill.reached() / 1e9), fmt::format("{:.1f} GFLOP/s", prefill.ceiling / 1e9),
       fmt::format("{:.0f} %", 100 * prefill.ratio()), verdict_text(options, prefill.ratio(), target)});
  console.write(table.text());
  console.print("Medians of {} rounds. Ceilings probed in the same rounds: read bandwidth ({}), dot peak ({}).\n",
                plan.rounds, result.decode.front().probe, prefill.probe);
}

nlohmann::json series_json(const BenchSeries& series, int64_t tokens, const char* unit) {
  return {{"tokens", tokens},
          {"tokens_per_second", static_cast<double>(tokens) / series.median_seconds()},
          {"seconds", series.median_seconds()},
          {"work", series.work},
          {"unit", unit},
          {"reached_per_second", series.reached()},
          {"ceiling_per_second", series.ceiling},
          {"ratio", series.ratio()},
          {"probe", series.probe},
          {"samples_seconds", series.seconds}};
}

nlohmann::json decode_json(const BenchSeries& series) {
  nlohmann::json json = series_json(series, 1, "bytes");
  json["context"] = series.context;
  json["target"] = bench::decode_target(series.context);
  return json;
}

nlohmann::json result_json(const BenchOptions& options, const LoadedModel& loaded, const BenchResult& result) {
  nlohmann::json prefill = series_json(result.prefill, options.plan.prefill_tokens, "flop");
  prefill["target"] = bench::prefill_target(bench::dot_unit_of(loaded.model->backend()));
  nlohmann::json all = nlohmann::json::array();
  for (const BenchSeries& series : result.decode) all.push_back(decode_json(series));
  return {{"model", subject_text(options, loaded.model->config())},
          {"settings", settings_json(loaded, options.model)},
          {"rounds", options.plan.rounds},
          {"decode", all.front()},
          {"decode_by_context", all},
          {"prefill", prefill}};
}

Status run_bench(Console& console, BenchOptions options) {
  if (options.model.on_gpu()) return run_gpu_bench(console, gpu_options(options));
  if (options.prefill > 0) options.plan.prefill_tokens = options.prefill;
  if (options.decode > 0) options.plan.decode_tokens = options.decode;
  if (!options.contexts.empty()) options.plan.contexts = options.contexts;
  const int64_t positions = bench_positions(options.plan);
  auto made =
      options.shape.empty() ? load_model(console, options.model, positions) : make_random(console, options, positions);
  if (!made) return made.error();
  const LoadedModel& loaded = *made;
  if (options.contexts.empty()) fit_contexts(loaded.model->max_positions(), &options.plan);
  if (loaded.model->max_positions() < bench_positions(options.plan)) {
    return make_error(ErrorCode::kCapacity, "the model takes {} positions; --prefill and --context need {}",
                      loaded.model->max_positions(), bench_positions(options.plan));
  }
  Progress progress(console, "bench", "rounds", options.model.quiet);
  const auto result = measure(*loaded.model, *loaded.pool, loaded.ranks, options.plan,
                              [&progress](int64_t done, int64_t total) { progress.update(done, total); });
  progress.finish();
  if (!result) return result.error();
  if (console.muted()) return {};
  if (options.as_json) return write_json(console, "-", result_json(options, loaded, *result));
  print_table(console, options, loaded, *result);
  return {};
}

}  // namespace

void add_bench(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("bench", "Speed of decode and prefill as ratios to the machine's ceilings");
  auto options = std::make_shared<BenchOptions>();
  add_model_options(*app, options->model);
  add_rank_options(*app, options->model);
  app->get_option("MODEL")->required(false);
  app->add_option("--shape", options->shape, "A published model's true shape with random weights")
      ->check(CLI::IsMember(plan::bench_shape_names()));
  app->add_option("--layers", options->layers, "Its first N layers only; 0: all")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  app->add_option("--vocabulary", options->vocabulary, "Its vocabulary cut to N tokens; 0: all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app->add_option("--group-size", options->group_size, "Of the random weights")
      ->check(CLI::IsMember({"32", "64", "128", "channel"}))
      ->capture_default_str();
  app->add_option("--prefill", options->prefill, "Tokens of the prompt (default 512, on a GPU 4096)")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--decode", options->decode, "Decode steps a round (default 16, on a GPU 32)")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--batch", options->batches, "On a GPU: sequences that decode together, a row of the table each")
      ->check(CLI::Range(1, 256))
      ->delimiter(',')
      ->capture_default_str();
  app->add_option("--context", options->contexts,
                  "Tokens in front of the decoded ones (default 1,2048, a row of the table each; on a GPU one, 1024)")
      ->check(CLI::Range(1, 1 << 20))
      ->delimiter(',');
  app->add_option("--rounds", options->plan.rounds, "Measured rounds; one more warms up")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app->add_flag("--json", options->as_json, "Print JSON");
  commands.push_back({app, [options](Console& console) {
                        if (options->shape.empty() == options->model.folder.empty()) {
                          throw CLI::ValidationError("bench", "give either a MODEL or --shape");
                        }
                        return run_on_ranks(console, options->model,
                                            [&](Console& own_console, const ModelOptions& model) {
                                              BenchOptions own = *options;
                                              own.model = model;
                                              return run_bench(own_console, std::move(own));
                                            });
                      }});
}

}  // namespace quadrille::cli
