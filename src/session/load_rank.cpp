// SPDX-License-Identifier: Apache-2.0
#include "session/load_rank.h"

#include <algorithm>
#include <charconv>

#include "core/topology.h"
#include "kernels/api/device_table.h"
#include "kernels/api/registry.h"
#include "layout/shard_plan.h"
#include "parallel/nccl.h"

namespace quadrille::session {
namespace {

int threads_of_rank(const SessionOptions& options) {
  const int all = options.threads > 0 ? options.threads : usable_cores();
  return std::max(1, all / options.tp);
}

Result<int64_t> wanted_positions(const SessionOptions& options) {
  constexpr int64_t kLongest = 8192;
  if (options.cache_tokens > 0) return options.cache_tokens;
  return cache_positions(options.folder, std::max<int64_t>(options.engine.max_sequences, 1), kLongest);
}

}  // namespace

Status check_session_options(const SessionOptions& options) {
  constexpr int kMostThreads = 1024;
  QD_TRY(const std::optional<int> gpu, gpu_of(options.device));
  if (options.tp < 1 || options.tp > layout::kMaxRanks) {
    return make_error(ErrorCode::kInvalidArgument, "tp: expected 1 to {} ranks, found {}", layout::kMaxRanks,
                      options.tp);
  }
  if (options.threads < 0 || options.threads > kMostThreads) {
    return make_error(ErrorCode::kInvalidArgument, "threads: expected 0 (one a usable core) to {}, found {}",
                      kMostThreads, options.threads);
  }
  if (options.cache_tokens < 0) {
    return make_error(ErrorCode::kInvalidArgument, "cache_tokens: expected 0 (the default) or more positions, found {}",
                      options.cache_tokens);
  }
  if (gpu && !options.kernels.empty()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "kernels '{}' is a table of the CPU, and device '{}' has kernels of its own: leave one of them "
                      "out",
                      options.kernels, options.device);
  }
  if (!gpu && !options.gpu_memory.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "gpu_memory '{}' is for a model on a GPU, and device is '{}'",
                      options.gpu_memory, options.device);
  }
  return {};
}

Result<std::optional<int>> gpu_of(const std::string& device) {
  if (device == "cpu") return std::optional<int>();
  if (device == "cuda") return std::optional<int>(0);
  const std::string number = device.starts_with("cuda:") ? device.substr(5) : "";
  int ordinal = -1;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), ordinal);
  const bool is_number = error == std::errc() && end == number.data() + number.size() && ordinal >= 0;
  if (is_number) return std::optional<int>(ordinal);
  return make_error(ErrorCode::kInvalidArgument, "device: expected 'cpu', 'cuda' or 'cuda:N', found '{}'", device);
}

Result<const kernels::KernelTable*> choose_table(const std::string& name, kernels::Rounding rounding) {
  QD_TRY(const kernels::KernelTable* table, kernels::select_table(name));
  if (rounding == kernels::Rounding::kBf16 || table->supports_round_f32) return table;
  return make_error(ErrorCode::kUnsupported,
                    "kernel table '{}' has no --round f32: it computes what the GPU computes, in bf16 between the "
                    "operations; use --round bf16, or another table",
                    table->name);
}

Result<model::DeviceOptions> device_options(int ordinal, const std::string& gpu_memory) {
  model::DeviceOptions device;
  device.ordinal = ordinal;
  if (!gpu_memory.empty()) {
    QD_TRY(device.gpu_memory, model::parse_gpu_memory(gpu_memory));
  }
  QD_TRY(device.table, kernels::device_table());
  device.join_ranks = [](parallel::Communicator& host, int own, device::Stream stream) {
    return parallel::nccl_communicator(host, own, stream);
  };
  return device;
}

Result<int64_t> cache_positions(const std::string& folder, int64_t batch, int64_t longest) {
  QD_TRY(const model::ModelConfig config, model::read_model_config(folder));
  const int64_t bytes_a_position = config.num_layers * 2 * config.kv_width() * 4;
  const int64_t affordable = (int64_t{2} << 30) / std::max<int64_t>(bytes_a_position, 1);
  longest = std::min(longest, config.max_positions);
  // Whole pages for each sequence.
  const int64_t a_sequence = (longest / model::kPagePositions + 1) * model::kPagePositions;
  return std::max(a_sequence, std::min(batch * a_sequence, affordable));
}

Result<LoadedRank> load_rank(const SessionOptions& options, parallel::Communicator* ranks, WatchedWork& loading) {
  const int rank = ranks == nullptr ? 0 : ranks->rank();
  LoadedRank loaded;
  loaded.pool = std::make_unique<ThreadPool>(threads_of_rank(options));
  model::LoadOptions load;
  load.numerics = options.numerics;
  load.rounding = options.rounding;
  load.pool = loaded.pool.get();
  load.run_weight_only_as_fp8 = options.run_weight_only_as_fp8;
  load.round_scales = options.round_scales;
  QD_TRY(const int64_t positions, wanted_positions(options));
  load.cache_pages = (positions + model::kPagePositions - 1) / model::kPagePositions;
  load.ranks = ranks;
  load.cancel = loading.cancelled();
  if (rank == 0) {
    load.progress = [&loading](const model::LoadProgress& at) {
      loading.update(at.module, at.bytes_done, at.bytes_total);
    };
  }
  QD_TRY(const std::optional<int> gpu, gpu_of(options.device));
  if (gpu) {
    QD_TRY(const model::DeviceOptions device, device_options(*gpu + rank, options.gpu_memory));
    QD_TRY(loaded.model, model::DeviceModel::load(options.folder, load, device));
  } else {
    QD_TRY(load.table, choose_table(options.kernels, options.rounding));
    QD_TRY(loaded.model, model::Model::load(options.folder, load));
  }
  return loaded;
}

}  // namespace quadrille::session
