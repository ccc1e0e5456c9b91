// SPDX-License-Identifier: Apache-2.0
#include "model/check_device_options.h"

#include "parallel/communicator.h"

namespace quadrille::model {

Status check_device_options(const LoadOptions& options, const DeviceOptions& device) {
  const bool has_ranks = options.ranks != nullptr && options.ranks->size() > 1;
  if (options.pool == nullptr) return make_error(ErrorCode::kInvalidArgument, "model: a thread pool is needed");
  if (device.table == nullptr) return make_error(ErrorCode::kInvalidArgument, "model: a table of kernels is needed");
  if (options.rounding == kernels::Rounding::kF32) {
    return make_error(ErrorCode::kUnsupported,
                      "a GPU computes in round bf16, found '--round f32': leave it out, or run with '--device cpu'");
  }
  if (has_ranks && !device.join_ranks) {
    return make_error(ErrorCode::kInvalidArgument, "model: {} ranks need a way for their GPUs to meet",
                      options.ranks->size());
  }
  if (options.expert_ranks != nullptr && options.expert_ranks->size() > 1) {
    return make_error(
        ErrorCode::kUnsupported,
        "expected tensor-parallel ranks alone on GPUs, found {} expert-parallel ones: leave '--ep' out, or "
        "run with '--device cpu'",
        options.expert_ranks->size());
  }
  if (options.cache_pages < 0 || options.default_positions < 1 || options.max_positions < 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "cache: {} pages, {} default positions, at most {} positions: expected no negative number",
                      options.cache_pages, options.default_positions, options.max_positions);
  }
  if (device.max_step_tokens < 1 || device.max_sequences < 1 || device.max_logit_rows < 1) {
    return make_error(ErrorCode::kInvalidArgument, "a step of {} tokens, {} sequences and {} rows: expected 1 or more",
                      device.max_step_tokens, device.max_sequences, device.max_logit_rows);
  }
  return {};
}

}  // namespace quadrille::model
