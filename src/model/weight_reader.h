// SPDX-License-Identifier: Apache-2.0
// Tensors of a checkpoint -> prepared matrices and vectors. Reads through the descriptor, so that a file that shrinks
// is an error; refuses what is not a number; says which tensor. Called by load_weights.cpp from several threads.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "model/inventory.h"
#include "model/weights.h"

namespace quadrille::model {

class WeightReader {
 public:
  WeightReader(kernels::Numerics numerics, bool round_scales) : numerics_(numerics), round_scales_(round_scales) {}

  // Stacks the rows of `parts` (one module; or gate and up, decided alike) into matrix `expert` of `store`, which has
  // room for it. `pool` may be null. Errors: kInvalidData (NaN, infinity, a code outside -8..7, a file that shrank),
  // kUnsupported (a scale that bf16 does not hold, without round_scales): each names file, tensor and place.
  Status read_linear(std::span<const ModuleSource* const> parts, int64_t expert, ThreadPool* pool, LinearStore* store);
  // A vector or matrix as bf16, row-major.
  Result<std::vector<uint16_t>> read_bf16(const ModuleSource& source);

  // What was rounded on the way: lines for a report, or nothing.
  std::vector<std::string> notes() const;

 private:
  Status read_w4(std::span<const ModuleSource* const> parts, int64_t expert, ThreadPool* pool, LinearStore* store);
  Status read_dense(std::span<const ModuleSource* const> parts, int64_t expert, ThreadPool* pool, LinearStore* store);
  Result<std::vector<uint16_t>> read_scales(const ModuleSource& source);
  Result<std::vector<float>> read_floats(const formats::TensorView& tensor) const;
  void count_scale(float value, float rounded);
  void count_weights(int64_t rounded);

  const kernels::Numerics numerics_;
  const bool round_scales_;
  mutable std::mutex mutex_;  // guards the counts
  int64_t rounded_scales_ = 0;
  int64_t rounded_weights_ = 0;
  double largest_scale_error_ = 0;  // relative
};

}  // namespace quadrille::model
