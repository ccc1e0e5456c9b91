// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_gpu_report.h"

#include <algorithm>
#include <chrono>

#include "cli/json_output.h"
#include "cli/load_model.h"
#include "cli/progress.h"
#include "cli/text_table.h"
#include "plan/known_shapes.h"

namespace quadrille::cli {
namespace {

struct GpuModel {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<model::DeviceModel> model;
  int ordinal = 0;
  double seconds = 0;  // until it was there
};

Result<std::unique_ptr<model::DeviceModel>> make_model(const GpuBenchOptions& options, const model::LoadOptions& load,
                                                       const model::DeviceOptions& device) {
  if (options.shape.empty()) return model::DeviceModel::load(options.model.folder, load, device);
  QD_TRY(const model::ModelConfig config, plan::bench_shape(options.shape, options.layers, options.vocabulary));
  model::RandomModel weights;
  weights.group_size = options.group_size == "channel" ? 0 : std::stoll(options.group_size);
  weights.seed = options.model.seed + 1;
  return model::DeviceModel::random(config, weights, load, device);
}

Result<GpuModel> make(Console& console, const GpuBenchOptions& options) {
  GpuModel made;
  QD_TRY(made.pool, make_pool(console, options.model));
  QD_TRY(model::LoadOptions load, make_load_options(console, options.model, *made.pool));
  load.cache_pages = (gpu_bench_positions(options.plan) + model::kPagePositions - 1) / model::kPagePositions;
  load.max_positions = gpu_bench_longest(options.plan);
  QD_TRY(model::DeviceOptions device, make_device_options(options.model));
  made.ordinal = device.ordinal;
  device.max_step_tokens = std::max(device.max_step_tokens, options.plan.prefill_tokens);
  for (const int64_t batch : options.plan.batches) device.max_logit_rows = std::max(device.max_logit_rows, batch);
  Progress progress(console, options.shape.empty() ? "load" : "random weights", "bytes", options.model.quiet);
  load.progress = [&progress](const model::LoadProgress& at) {
    progress.update(static_cast<int64_t>(at.bytes_done), static_cast<int64_t>(at.bytes_total), at.module);
  };
  const auto start = std::chrono::steady_clock::now();
  auto model = make_model(options, load, device);
  progress.finish();
  if (!model) return model.error();
  made.model = std::move(*model);
  made.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return made;
}

std::string subject_text(const GpuBenchOptions& options, const model::ModelConfig& config) {
  if (options.shape.empty()) return options.model.folder;
  return fmt::format("{}, {} layers, vocabulary {}, random weights, group {}", options.shape, config.num_layers,
                     config.vocab_size, options.group_size);
}

void print_table(Console& console, const GpuBenchOptions& options, const GpuModel& made, const GpuBenchResult& result) {
  const model::DeviceModel& model = *made.model;
  console.print("{} ({}, round bf16, {})\n", subject_text(options, model.config()), numerics_name(model.numerics()),
                options.model.device);
  const model::DeviceLoadTimes times = model.load_times();
  console.print("ready in {:.2f} s", made.seconds);
  if (times.copy_seconds > 0) {
    console.print(", of that {:.2f} s for {:.2f} GB to the GPU: {:.1f} GB/s", times.copy_seconds,
                  static_cast<double>(times.bytes_copied) / 1e9,
                  static_cast<double>(times.bytes_copied) / times.copy_seconds / 1e9);
  }
  console.print("\n\n");
  TextTable table({"", ">batch", ">context", ">ms a step", ">tokens/s", ">experts hit", ">must read", ">must do",
                   ">floor ms", ">of floor"});
  for (const GpuBenchRow& row : result.rows) {
    const double median = row.median_seconds();
    table.add_row({row.name == "prefill" ? fmt::format("prefill, {} tokens", row.tokens) : row.name,
                   fmt::format("{}", row.batch), fmt::format("{}", row.context), fmt::format("{:.3f}", 1e3 * median),
                   fmt::format("{:.0f}", static_cast<double>(row.tokens) / median),
                   fmt::format("{:.1f}", row.experts_hit), fmt::format("{:.2f} GB", row.bytes / 1e9),
                   fmt::format("{:.2f} TFLOP", row.operations / 1e12), fmt::format("{:.3f}", 1e3 * row.floor_seconds),
                   fmt::format("{:.1f} x", median / row.floor_seconds)});
  }
  console.write(table.text());
  console.print(
      "Medians of {} rounds; tokens random and distinct. Floor, over ceilings probed in this process: bytes at {:.0f} "
      "GB/s (reads; copies {:.0f}), operations at {:.0f} TFLOP/s (e4m3, resident, 0.3 s). {} graphs.\n",
      options.plan.rounds, result.ceilings.read / 1e9, result.ceilings.copy / 1e9, result.ceilings.fp8 / 1e12,
      model.num_graphs());
}

nlohmann::json result_json(const GpuBenchOptions& options, const GpuModel& made, const GpuBenchResult& result) {
  nlohmann::json rows = nlohmann::json::array();
  for (const GpuBenchRow& row : result.rows) {
    rows.push_back({{"name", row.name},
                    {"batch", row.batch},
                    {"tokens", row.tokens},
                    {"context", row.context},
                    {"seconds", row.median_seconds()},
                    {"samples_seconds", row.seconds},
                    {"experts_hit", row.experts_hit},
                    {"bytes", row.bytes},
                    {"operations", row.operations},
                    {"floor_seconds", row.floor_seconds}});
  }
  const model::DeviceLoadTimes times = made.model->load_times();
  const model::MemoryUse memory = made.model->memory();
  return {{"model", subject_text(options, made.model->config())},
          {"device", options.model.device},
          {"numerics", numerics_name(made.model->numerics())},
          {"ready_seconds", made.seconds},
          {"bytes_copied", times.bytes_copied},
          {"copy_seconds", times.copy_seconds},
          {"weight_bytes", memory.weight_bytes},
          {"workspace_bytes", memory.scratch_bytes},
          {"cache_bytes", memory.cache_bytes},
          {"read_bandwidth", result.ceilings.read},
          {"copy_bandwidth", result.ceilings.copy},
          {"fp8_peak", result.ceilings.fp8},
          {"rows", rows}};
}

}  // namespace

Status run_gpu_bench(Console& console, const GpuBenchOptions& options) {
  QD_TRY(const GpuModel made, make(console, options));
  if (made.model->max_positions() < gpu_bench_longest(options.plan)) {
    return make_error(ErrorCode::kCapacity, "the model takes {} positions; --prefill, --context and --decode need {}",
                      made.model->max_positions(), gpu_bench_longest(options.plan));
  }
  Progress progress(console, "bench", "rows", options.model.quiet);
  const auto result = measure_on_gpu(*made.model, made.ordinal, options.plan,
                                     [&progress](int64_t done, int64_t total) { progress.update(done, total); });
  progress.finish();
  if (!result) return result.error();
  if (options.as_json) return write_json(console, "-", result_json(options, made, *result));
  print_table(console, options, made, *result);
  return {};
}

}  // namespace quadrille::cli
