// SPDX-License-Identifier: Apache-2.0
// quadrille plan: memory, traffic and predicted step time a rank for a model on N GPUs, for every grid of tensor- and
// expert-parallel ranks, or for one. Needs config.json or a shape's name; no weights, no GPU. The arithmetic is plan.h.
#include <filesystem>
#include <memory>

#include "cli/bench_shapes.h"
#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/plan_report.h"

namespace quadrille::cli {
namespace {

struct PlanOptions {
  std::string model;
  int gpus = 0;  // 0: tp * ep, or 1
  int tp = 0, ep = 0;
  int gpus_per_host = 8;
  int64_t tokens = 256, context = 4096, prefill = 4096;
  int64_t group_size = -1;
  std::string gpu = "h100";
  double memory_gib = 0;
  std::string attention = "divided";
  std::string kv = "bf16";
  bool layer_times = false;
  bool rates = false;
  bool as_json = false;
};

Result<PlanShape> open_shape(const PlanOptions& options) {
  ShapeOptions shape;
  if (options.group_size >= 0) shape.group_size = options.group_size;
  const std::vector<std::string> names = named_shapes();
  if (std::find(names.begin(), names.end(), options.model) != names.end()) {
    QD_TRY(const formats::HfConfig raw, named_shape(options.model));
    return make_plan_shape(options.model, raw, shape);
  }
  std::error_code ignored;
  if (!std::filesystem::is_directory(options.model, ignored)) {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return make_error(ErrorCode::kNotFound, "'{}' is neither a folder with a config.json nor one of the shapes: {}",
                      options.model, list);
  }
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(options.model));
  return make_plan_shape(options.model, raw, shape);
}

// The grids that were asked for: both sizes, or one and the number of GPUs, or all of that number.
Result<std::vector<PlanGrid>> wanted_grids(const PlanOptions& options) {
  const int gpus = options.gpus > 0 ? options.gpus : std::max(1, options.tp) * std::max(1, options.ep);
  if (gpus > layout::kMaxRanks) {
    return make_error(ErrorCode::kInvalidArgument, "{} GPUs: expected 1 to {}", gpus, layout::kMaxRanks);
  }
  std::vector<PlanGrid> grids;
  for (const PlanGrid& grid : grids_of(gpus, options.gpus_per_host)) {
    if ((options.tp == 0 || grid.tp == options.tp) && (options.ep == 0 || grid.ep == options.ep)) grids.push_back(grid);
  }
  if (!grids.empty()) return grids;
  return make_error(ErrorCode::kInvalidArgument, "tp * ep must be the number of GPUs: tp {}, ep {}, {} GPUs",
                    options.tp == 0 ? "any" : std::to_string(options.tp),
                    options.ep == 0 ? "any" : std::to_string(options.ep), gpus);
}

Status run_layer_times(Console& console, const PlanOptions& options, const PlanShape& shape, const GpuRates& gpu) {
  std::vector<PlanGrid> grids;
  if (options.gpus > 0 || options.tp > 0 || options.ep > 0) {
    QD_TRY(grids, wanted_grids(options));
  } else {
    grids = {{1, 1, options.gpus_per_host}, {2, 1, options.gpus_per_host}, {1, 2, options.gpus_per_host}};
  }
  std::vector<LayerTime> times;
  for (const PlanGrid& grid : grids) {
    for (int64_t tokens = 1; tokens <= 4096; tokens *= 4) {
      QD_TRY(LayerTime time, plan_layer(shape, grid, gpu, tokens));
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

Result<PlanReport> make_report(const PlanOptions& options, const PlanShape& shape, const PlanRequest& request) {
  PlanReport report;
  report.shape = &shape;
  report.request = &request;
  QD_TRY(const std::vector<PlanGrid> grids, wanted_grids(options));
  report.gpus = grids[0].ranks();
  for (const PlanGrid& grid : grids) {
    auto plan = plan_grid(shape, grid, request);
    if (plan) {
      report.plans.push_back(std::move(*plan));
    } else {
      report.illegal.push_back(fmt::format("tp {}, ep {}: {}", grid.tp, grid.ep, plan.error().message));
    }
  }
  if (report.plans.empty()) {
    std::string reasons;
    for (const std::string& reason : report.illegal) reasons += (reasons.empty() ? "" : "; ") + reason;
    return make_error(ErrorCode::kUnsupported, "{}: no legal grid of {} GPUs: {}", shape.name, report.gpus, reasons);
  }
  report.best = best_grid(report.plans);
  report.smallest = smallest_that_fits(shape, request, options.gpus_per_host);
  return report;
}

Status run_plan(Console& console, const PlanOptions& options) {
  QD_TRY(const PlanShape shape, open_shape(options));
  PlanRequest request;
  QD_TRY(request.gpu, gpu_rates(options.gpu));
  if (options.layer_times) return run_layer_times(console, options, shape, request.gpu);
  request.gpu_memory = options.memory_gib > 0
                           ? static_cast<int64_t>(options.memory_gib * 1073741824.0)
                           : static_cast<int64_t>(request.gpu.memory.value - request.gpu.reserve.value);
  request.load = {options.tokens, options.context, options.prefill,
                  options.attention == "divided" ? AttentionOver::kDivided : AttentionOver::kReplicated};
  QD_TRY(const PlanReport report, make_report(options, shape, request));
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
  app->add_option("MODEL", options->model, "Folder with a config.json, or the name of a shape")
      ->required()
      ->type_name("");
  const CLI::Range ranks(1, layout::kMaxRanks);
  app->add_option("--gpus", options->gpus, "Number of GPUs (default: tp * ep)")->type_name("N")->check(ranks);
  app->add_option("--tp", options->tp, "Tensor-parallel size alone (default: every one)")->type_name("N")->check(ranks);
  app->add_option("--ep", options->ep, "Expert-parallel size alone (default: every one)")->type_name("N")->check(ranks);
  app->add_option("--gpus-per-host", options->gpus_per_host, "GPUs of one host")
      ->type_name("N")
      ->check(ranks)
      ->capture_default_str();
  app->add_option("--tokens", options->tokens, "Sequences that decode together, over all GPUs")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, kManyTokens))
      ->capture_default_str();
  app->add_option("--context", options->context, "Positions of each sequence")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, kManyTokens))
      ->capture_default_str();
  app->add_option("--prefill", options->prefill, "Tokens of a prefill step, over all GPUs")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, kManyTokens))
      ->capture_default_str();
  app->add_option("--gpu", options->gpu, "h100, h200 or h20")
      ->check(CLI::IsMember({"h100", "h200", "h20"}))
      ->capture_default_str();
  app->add_option("--gpu-memory", options->memory_gib, "GiB that a rank may use (default: the GPU's less 2)")
      ->type_name("GIB")
      ->check(CLI::PositiveNumber);
  app->add_option("--group-size", options->group_size, "Groups of the W4A8 weights: 32, 64, 128, 0 for channels")
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
