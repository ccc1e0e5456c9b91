// SPDX-License-Identifier: Apache-2.0
// quadrille layer: one MoE layer from a file, for whoever debugs kernels beside another engine.
#include <memory>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/layer_device.h"
#include "cli/layer_file.h"
#include "cli/load_model.h"

namespace quadrille::cli {
namespace {

struct LayerOptions {
  ModelOptions numerics;  // its folder is not used
  std::string in, out;
  bool stages = false;
  std::string device = "cpu";
  int64_t repeat = 0;
};

// What the options say together; 2 is the exit code of a usage error.
void check_options(const LayerOptions& options) {
  if (options.device == "cpu") {
    if (options.repeat > 0) throw CLI::ValidationError("--repeat", "times a graph: only with --device cuda");
    return;
  }
  if (options.stages) throw CLI::ValidationError("--stages", "shows the steps of a CPU table: only with --device cpu");
  if (!options.numerics.kernels.empty()) {
    throw CLI::ValidationError("--kernels", "names a CPU table: only with --device cpu");
  }
  if (options.numerics.rounding_value() != kernels::Rounding::kBf16) {
    throw CLI::ValidationError("--round", "a GPU rounds intermediate values to bf16: f32 only with --device cpu");
  }
}

Status run_on_device(Console& console, const LayerOptions& options) {
  QD_TRY_STATUS(layer_device_available());
  LayerFile file;
  QD_TRY_STATUS(read_layer_file(options.in, kernels::Rounding::kBf16, &file));
  const kernels::Numerics numerics = options.numerics.numerics_value();
  auto ran = run_layer_on_device(file, numerics, options.repeat);
  if (!ran) return ran.error().in(options.in);
  StageCollector out(false);
  out.add_out(file.num_tokens, file.hidden, ran->out);
  QD_TRY_STATUS(
      out.write(options.out, {{"numerics", numerics_name(numerics)}, {"round", "bf16"}, {"kernels", "cuda"}}));
  console.print("{}: {} tokens, {} experts, hidden {}, width {}; 1 tensor ({}, round bf16, cuda: {})\n", options.out,
                file.num_tokens, file.num_experts, file.hidden, file.width, numerics_name(numerics), ran->device);
  if (options.repeat == 0) return {};
  console.print("{:.2f} us: median of {} replays of one graph, the same weights and tokens each time\n", ran->median_us,
                options.repeat);
  return {};
}

Status run_layer_command(Console& console, const LayerOptions& options) {
  check_options(options);
  if (options.device == "cuda") return run_on_device(console, options);
  QD_TRY(const kernels::KernelTable* table, choose_table(options.numerics));
  ThreadPool pool(options.numerics.threads);
  Arena scratch;
  moe::Execution execution;
  execution.table = table;
  execution.kernels = {&pool, &scratch};
  execution.numerics = options.numerics.numerics_value();
  execution.rounding = options.numerics.rounding_value();
  LayerFile file;
  QD_TRY_STATUS(read_layer_file(options.in, execution.rounding, &file));
  QD_TRY_STATUS(prepare_layer(options.in, execution.numerics, pool, &file));
  std::vector<float> out(static_cast<size_t>(file.num_tokens * file.hidden));
  StageCollector stages(options.stages);
  const moe::Routes routes{file.topk_ids.data(), file.topk_weights.data()};
  if (auto done = moe::run_layer(file.layer, file.x.data(), file.num_tokens, routes, execution, out.data(), &stages);
      !done) {
    return done.error().in(options.in);
  }
  QD_TRY_STATUS(stages.write(options.out, {{"numerics", numerics_name(execution.numerics)},
                                           {"round", rounding_name(execution.rounding)},
                                           {"kernels", table->name}}));
  console.print("{}: {} tokens, {} experts, hidden {}, width {}; {} tensor{} ({}, round {}, {})\n", options.out,
                file.num_tokens, file.num_experts, file.hidden, file.width, stages.count(),
                stages.count() == 1 ? "" : "s", numerics_name(execution.numerics), rounding_name(execution.rounding),
                table->name);
  return {};
}

}  // namespace

void add_layer(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("layer", "Run one MoE layer from a safetensors file");
  auto options = std::make_shared<LayerOptions>();
  app->add_option("IN", options->in, "w13_packed, w13_scale, w2_packed, w2_scale, x, topk_ids, topk_weights")
      ->required()
      ->type_name("");
  app->add_option("OUT", options->out, "safetensors to write")->required()->type_name("");
  add_numerics_options(*app, options->numerics);
  app->add_flag("--stages", options->stages, "Write every intermediate tensor, not only 'out'");
  app->add_option("--device", options->device, "Where it runs: cpu, or cuda (a Hopper GPU)")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app->add_option("--repeat", options->repeat, "With --device cuda: time this many replays of one graph")
      ->check(CLI::Range(int64_t{0}, int64_t{1000000}))
      ->capture_default_str();
  commands.push_back({app, [options](Console& console) { return run_layer_command(console, *options); }});
}

}  // namespace quadrille::cli
