// SPDX-License-Identifier: Apache-2.0
// Tensors of a checkpoint -> prepared matrices and vectors. Reads through the descriptor, so that a file that shrinks
// is an error; refuses what is not a number; says which tensor. Called by load_weights.cpp from several threads.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "layout/shard_plan.h"
#include "model/inventory.h"
#include "model/weights.h"
#include "prepare/shard.h"

namespace quadrille::model {

// What one rank takes of a module's matrix.
struct MatrixCut {
  std::optional<layout::Range> rows;      // column-parallel; none: all
  std::optional<layout::KShard> columns;  // row-parallel; none: all
  bool takes_bias = true;                 // the rows' part of it; of a row-parallel module: rank 0 alone
};

// Where a 4-bit matrix [n, k] goes as a checkpoint spells it.
struct CanonicalRoom {
  std::span<std::byte> codes;   // [n, k/8] I32 or [n, k] I8
  std::span<uint16_t> scales;   // [n, groups] bf16
  std::span<float> row_absmax;  // [n] of a row-parallel cut of `vllm` (prepare/prepare_w4.h), or none
};

class WeightReader {
 public:
  // `channel`: over which groups `vllm` takes the channel scale of a row-parallel matrix.
  WeightReader(kernels::Numerics numerics, bool round_scales, prepare::ChannelScale channel)
      : numerics_(numerics), round_scales_(round_scales), channel_(channel) {}

  // Stacks the rows of `parts` (one module; or gate and up, decided alike and cut each for itself) into matrix `expert`
  // of `store`, which has room for it. Of a cut by rows only those are read; of a cut by columns everything, because
  // the pieces of its rows are smaller than what a disk reads. `pool` may be null. Errors: kInvalidData (NaN, infinity,
  // a code outside -8..7, a file that shrank), kUnsupported (a scale that bf16 does not hold, without round_scales):
  // each names file, tensor and place.
  Status read_linear(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t expert, ThreadPool* pool,
                     LinearStore* store);
  // A vector or matrix as bf16, row-major; `rows` of it where given.
  Result<std::vector<uint16_t>> read_bf16(const ModuleSource& source, std::optional<layout::Range> rows = {});
  // The same of `rows`, into memory of the caller.
  Status read_bf16_into(const ModuleSource& source, layout::Range rows, std::span<uint16_t> codes);

  // The part `cut` of the 4-bit matrix of a module as a device prepares it, into memory of the caller. Checks what
  // read_linear() checks, with its errors.
  Status read_canonical(const ModuleSource& source, const MatrixCut& cut, const CanonicalRoom& room);
  // `rows` of the bias, fp32, of a module that has one.
  Result<std::vector<float>> read_bias(const ModuleSource& source, layout::Range rows) const;

  // What was rounded on the way: lines for a report, or nothing.
  std::vector<std::string> notes() const;

 private:
  Status read_w4(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t expert, ThreadPool* pool,
                 LinearStore* store);
  Status read_dense(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t expert, ThreadPool* pool,
                    LinearStore* store);
  Status read_columns(const ModuleSource& source, const layout::KShard& columns, const CanonicalRoom& room);
  Result<std::vector<uint16_t>> read_scales(const ModuleSource& source, layout::Range rows);
  Status read_scales_into(const ModuleSource& source, layout::Range rows, std::span<uint16_t> codes);
  Result<std::vector<float>> read_floats(const formats::TensorView& tensor, layout::Range rows) const;
  void count_scale(float value, float rounded);
  void count_weights(int64_t rounded);

  const kernels::Numerics numerics_;
  const bool round_scales_;
  const prepare::ChannelScale channel_;
  mutable std::mutex mutex_;  // guards the counts
  int64_t rounded_scales_ = 0;
  int64_t rounded_weights_ = 0;
  double largest_scale_error_ = 0;  // relative
};

}  // namespace quadrille::model
