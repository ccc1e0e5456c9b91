// SPDX-License-Identifier: Apache-2.0
// quadrille layer: one MoE layer from a file, for whoever debugs kernels beside another engine.
#include <memory>

#include "cli/args.h"
#include "cli/commands.h"
#include "cli/layer_file.h"
#include "cli/load_model.h"

namespace quadrille::cli {
namespace {

struct LayerOptions {
  ModelOptions numerics;  // its folder is not used
  std::string in, out;
  bool stages = false;
};

Status run_layer_command(Console& console, const LayerOptions& options) {
  QD_TRY(const kernels::KernelTable* table, choose_table(options.numerics));
  ThreadPool pool(options.numerics.threads);
  Arena scratch;
  moe::Execution execution;
  execution.table = table;
  execution.kernels = {&pool, &scratch};
  execution.numerics = options.numerics.numerics_value();
  execution.rounding = options.numerics.rounding_value();
  LayerFile file;
  QD_TRY_STATUS(read_layer_file(options.in, execution.numerics, execution.rounding, pool, &file));
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
  commands.push_back({app, [options](Console& console) { return run_layer_command(console, *options); }});
}

}  // namespace quadrille::cli
