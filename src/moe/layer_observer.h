// SPDX-License-Identifier: Apache-2.0
// Looks into a layer: its stages by name, for tests, for the command line's `layer` and `verify`. Called by layer.cpp
// and row_parallel.cpp; nothing is copied unless asked.
#pragma once

#include <cstdint>
#include <vector>

namespace quadrille::moe {

// A stage's tensor, valid during the call. The names are a1, a1_scale, expert_first_token_offset, inv_permuted_idx,
// permuted_idx, gemm1_out, act, a2, a2_scale, gemm2_out, out (routed experts only; the a's where they are W4A8). With
// ranks gemm1_out, act and a2 are the columns of this rank, gemm2_out its partial rows, out the whole output. With
// expert ranks all but out are of the rows that came to this rank, each with its one route and its local slot.
enum class StageType {
  kF32,
  kBf16InF32,  // fp32 in memory; the stage's values are these rounded to bf16
  kE4M3,
  kI32,
  kI64,
};
struct Stage {
  const char* name;
  StageType type;
  std::vector<int64_t> shape;
  const void* data;
};
class LayerObserver {
 public:
  virtual ~LayerObserver() = default;
  virtual void stage(const Stage& stage) = 0;
  // The stages of the shared expert: gemm1_out, act, a2, a2_scale, gemm2_out, with a row a token.
  virtual void shared_stage(const Stage& stage) { static_cast<void>(stage); }
};

}  // namespace quadrille::moe
