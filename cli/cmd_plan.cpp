// SPDX-License-Identifier: Apache-2.0
// quadrille plan: memory, traffic and predicted step time a rank for a model on N GPUs, for every grid of tensor- and
// expert-parallel ranks, or for one. Needs config.json or a shape's name; no weights, no GPU. The arithmetic is
// plan/plan.h.
#include <memory>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/plan_report.h"

namespace quadrille::cli {
namespace {

using plan::PlanGrid;

struct PlanOptions {
  plan::PlanQuestion question;
  std::string attention = "divided";
  std::string kv = "bf16";
  bool layer_times = false;
  bool rates = false;
  bool as_json = false;
};

Status run_layer_times(Console& console, const PlanOptions& options) {
  const plan::PlanQuestion& question = options.question;
  QD_TRY(const plan::PlanShape shape, plan::open_shape(question.model, question.group_size));
  QD_TRY(const plan::GpuRates gpu, plan::gpu_rates(question.gpu));
  std::vector<PlanGrid> grids;
  if (question.gpus > 0 || question.tp > 0 || question.ep > 0) {
    QD_TRY(grids, wanted_grids(question));
  } else {
    const int a_host = question.gpus_per_host;
    grids = {{1, 1, a_host}, {2, 1, a_host}, {1, 2, a_host}};
  }
  std::vector<plan::LayerTime> times;
  for (const PlanGrid& grid : grids) {
    for (int64_t tokens = 1; tokens <= 4096; tokens *= 4) {
      QD_TRY(plan::LayerTime time, plan_layer(shape, grid, gpu, tokens));
      times.push_back(std::move(time));
    }
  }
  if (options.as_json) {
    console.print("{}\n", json_text(layer_times_json(shape, gpu, times)));
  } else {
    console.write(layer_times_text(shape, gpu, times));
  }
  return {};
}

Status run_plan(Console& console, const PlanOptions& options) {
  if (options.layer_times) return run_layer_times(console, options);
  plan::PlanQuestion question = options.question;
  question.attention =
      options.attention == "divided" ? plan::AttentionOver::kDivided : plan::AttentionOver::kReplicated;
  QD_TRY(const plan::PlanReport report, make_report(question));
  if (options.as_json) {
    console.print("{}\n", json_text(plan_json(report)));
  } else {
    console.write(plan_text(report, options.rates));
  }
  if (!report.best) return make_error(ErrorCode::kCapacity, "{}", does_not_fit_text(report));
  return {};
}

void declare_options(CLI::App* app, PlanOptions* options) {
  constexpr int64_t kManyTokens = 1 << 20;
  app->add_option("MODEL", options->question.model, "Folder with a config.json, or the name of a shape")
      ->required()
      ->type_name("");
  const CLI::Range ranks(1, layout::kMaxRanks);
  app->add_option("--gpus", options->question.gpus, "Number of GPUs (default: tp * ep)")->type_name("N")->check(ranks);
  app->add_option("--tp", options->question.tp, "Tensor-parallel size alone (default: every one)")
      ->type_name("N")
      ->check(ranks);
  app->add_option("--ep", options->question.ep, "Expert-parallel size alone (default: every one)")
      ->type_name("N")
      ->check(ranks);
  app->add_option("--gpus-per-host", options->question.gpus_per_host, "GPUs of one host")
      ->type_name("N")
      ->check(ranks)
      ->capture_default_str();
  app->add_option("--tokens", options->question.decode_tokens, "Sequences that decode together, over all GPUs")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, kManyTokens))
      ->capture_default_str();
  app->add_option("--context", options->question.context, "Positions of each sequence")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, kManyTokens))
      ->capture_default_str();
  app->add_option("--prefill", options->question.prefill_tokens, "Tokens of a prefill step, over all GPUs")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, kManyTokens))
      ->capture_default_str();
  app->add_option("--gpu", options->question.gpu, "h100, h200 or h20")
      ->check(CLI::IsMember({"h100", "h200", "h20"}))
      ->capture_default_str();
  app->add_option("--gpu-memory", options->question.gpu_memory_gib,
                  "GiB that a rank may use (default: the GPU's less 2)")
      ->type_name("GIB")
      ->check(CLI::PositiveNumber);
  app->add_option("--group-size", options->question.group_size,
                  "Groups of the W4A8 weights: 32, 64, 128, 0 for channels")
      ->type_name("N")
      ->check(CLI::IsMember({0, 32, 64, 128}));
  app->add_option("--attention", options->attention, "Over expert-parallel groups: divided or replicated")
      ->check(CLI::IsMember({"divided", "replicated"}))
      ->capture_default_str();
  app->add_option("--kv", options->kv, "Type of the cache")->check(CLI::IsMember({"bf16"}))->capture_default_str();
  app->add_flag("--layer-times", options->layer_times, "Predict one layer's routed experts for 1 to 4,096 tokens");
  app->add_flag("--rates", options->rates, "Also the numbers that predictions are made of");
  app->add_flag("--json", options->as_json, "Print JSON");
}

}  // namespace

void add_plan(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("plan", "Memory, traffic and predicted time of a model on N GPUs");
  auto options = std::make_shared<PlanOptions>();
  declare_options(app, options.get());
  commands.push_back({app, [options](Console& console) { return run_plan(console, *options); }});
}

}  // namespace quadrille::cli
