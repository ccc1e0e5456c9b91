// SPDX-License-Identifier: Apache-2.0
// Fills LoadOptions, shows the progress of a load, and describes what was loaded.
#include "cli/load_model.h"

#include <algorithm>

#include "cli/load_report.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "parallel/communicator.h"
#include "session/load_rank.h"

namespace quadrille::cli {

Result<const kernels::KernelTable*> choose_table(const ModelOptions& options) {
  return session::choose_table(options.kernels, options.rounding_value());
}

namespace {

// Options that go together.
Status check_place(const ModelOptions& options) {
  if (!options.on_gpu()) {
    if (options.gpu_memory.empty() && !options.load_report) return {};
    return make_error(ErrorCode::kInvalidArgument, "{} is for a model on a GPU: add '--device cuda'",
                      options.gpu_memory.empty() ? "--load-report" : "--gpu-memory");
  }
  if (options.kernels.empty()) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "--kernels {} is a table of the CPU, and --device {} has kernels of its own: leave one of them out",
                    options.kernels, options.device);
}

Result<std::unique_ptr<model::AnyModel>> load_there(Console& console, const ModelOptions& options,
                                                    const model::LoadOptions& load) {
  if (!options.on_gpu()) {
    QD_TRY(std::unique_ptr<model::Model> model, model::Model::load(options.folder, load));
    return std::unique_ptr<model::AnyModel>(std::move(model));
  }
  QD_TRY(const model::DeviceOptions device, make_device_options(options));
  QD_TRY(std::unique_ptr<model::DeviceModel> model, model::DeviceModel::load(options.folder, load, device));
  const double ready_seconds = seconds_since_process_start();
  if (options.load_report) QD_TRY_STATUS(print_load_report(console, *model, ready_seconds));
  return std::unique_ptr<model::AnyModel>(std::move(model));
}

}  // namespace

Result<model::DeviceOptions> make_device_options(const ModelOptions& options) {
  return session::device_options(options.gpu_ordinal() + options.local_rank, options.gpu_memory);
}

Result<std::unique_ptr<ThreadPool>> make_pool(Console& console, const ModelOptions& options) {
  QD_TRY(PlacedPool placed, make_placed_pool(options.threads, options.numa_value()));
  for (const std::string& warning : placed.warnings) console.warn(warning);
  return std::move(placed.pool);
}

Result<model::LoadOptions> make_load_options(Console& console, const ModelOptions& options, ThreadPool& pool) {
  model::LoadOptions load;
  QD_TRY_STATUS(check_place(options));
  if (!options.on_gpu()) {
    QD_TRY(load.table, choose_table(options));
  }
  load.numerics = options.numerics_value();
  load.rounding = options.rounding_value();
  load.pool = &pool;
  load.run_weight_only_as_fp8 = options.activations == "fp8";
  load.round_scales = options.scales == "round";
  load.cache_pages = (options.cache_tokens + model::kPagePositions - 1) / model::kPagePositions;
  load.ranks = options.expert_ranks == nullptr ? options.ranks : options.tensor_ranks;
  load.expert_ranks = options.expert_ranks;
  load.split_scale = options.split_scales == "local" ? moe::SplitScale::kLocal : moe::SplitScale::kAgreed;
  load.log = console.log_sink();
  load.cancel = interrupt_flag();
  return load;
}

Result<LoadedModel> load_model(Console& console, const ModelOptions& options, int64_t positions) {
  LoadedModel loaded;
  QD_TRY(loaded.pool, make_pool(console, options));
  QD_TRY(model::LoadOptions load, make_load_options(console, options, *loaded.pool));
  loaded.ranks = options.ranks;
  if (positions > 0) load.default_positions = positions;
  Progress progress(console, "load", "bytes", options.quiet);
  load.progress = [&progress](const model::LoadProgress& at) {
    progress.update(static_cast<int64_t>(at.bytes_done), static_cast<int64_t>(at.bytes_total), at.module);
  };
  auto model = load_there(console, options, load);
  progress.finish();
  if (!model) return model.error();
  loaded.model = std::move(*model);
  for (const std::string& note : loaded.model->notes()) console.warn(note);
  return loaded;
}

nlohmann::json settings_json(const LoadedModel& loaded, const ModelOptions& options) {
  return {{"numerics", numerics_name(loaded.model->numerics())},
          {"round", rounding_name(loaded.model->rounding())},
          {"kernels", loaded.model->backend()},
          {"device", options.device},
          {"threads", loaded.pool->num_threads()},
          {"tp", options.tp},
          {"ep", options.ep},
          {"seed", options.seed},
          {"notes", loaded.model->notes()}};
}

std::string settings_text(const LoadedModel& loaded) {
  const int threads = loaded.pool->num_threads();
  const int ranks = loaded.ranks == nullptr ? 1 : loaded.ranks->size();
  const std::string tp = ranks == 1 ? "" : fmt::format("{} ranks of ", ranks);
  return fmt::format("{}, round {}, {}, {}{} thread{}", numerics_name(loaded.model->numerics()),
                     rounding_name(loaded.model->rounding()), loaded.model->backend(), tp, threads,
                     threads == 1 ? "" : "s");
}

namespace {

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

}  // namespace

std::string speed_text(const engine::EngineMetrics& metrics) {
  return fmt::format("{} tokens in {:.2f} s: {:.1f} tokens/s; prompts: {} tokens at {:.0f} tokens/s",
                     metrics.decode_tokens, metrics.decode_seconds, rate(metrics.decode_tokens, metrics.decode_seconds),
                     metrics.prefill_tokens, rate(metrics.prefill_tokens, metrics.prefill_seconds));
}

nlohmann::json speed_json(const engine::EngineMetrics& metrics) {
  return {{"prompt_tokens", metrics.prefill_tokens},
          {"prompt_seconds", metrics.prefill_seconds},
          {"prompt_tokens_per_second", rate(metrics.prefill_tokens, metrics.prefill_seconds)},
          {"answer_tokens", metrics.decode_tokens},
          {"answer_seconds", metrics.decode_seconds},
          {"answer_tokens_per_second", rate(metrics.decode_tokens, metrics.decode_seconds)}};
}

}  // namespace quadrille::cli
