// SPDX-License-Identifier: Apache-2.0
// The best of a row of logits as one 64-bit maximum: the order of the logit, then the lower id.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe/order_key.h"

namespace quadrille::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// The larger key wins; 0: nothing. bad: NaN or +infinity was met.
struct Best {
  uint64_t key;
  uint32_t bad;
};
__device__ __forceinline__ uint64_t greedy_key(float logit, int64_t id) {
  return static_cast<uint64_t>(order_key(logit)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ __forceinline__ Best best_at(const float* logits, int64_t id) {
  const float x = logits[id];
  return {greedy_key(x, id), x < __builtin_inff() ? 0u : 1u};
}
__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  return {a.key > b.key ? a.key : b.key, a.bad | b.bad};
}
__device__ __forceinline__ bool has_token(const Best& best) {
  return best.bad == 0 && static_cast<uint32_t>(best.key >> 32) > kLowestKey;
}
__device__ __forceinline__ int32_t id_of(const Best& best) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best.key));
}

// The best of all threads, for all threads.
template <int Warps>
__device__ __forceinline__ Best best_of_block(Best own, Best* of_warps) {
  for (int d = 16; d > 0; d /= 2) {
    own = better(own, {__shfl_xor_sync(kAllLanes, own.key, d), __shfl_xor_sync(kAllLanes, own.bad, d)});
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
  __syncthreads();  // the bests of all warps stand
  Best best = of_warps[0];
  for (int w = 1; w < Warps; ++w) best = better(best, of_warps[w]);
  return best;
}

}  // namespace quadrille::kernels::cuda
