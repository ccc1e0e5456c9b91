// SPDX-License-Identifier: Apache-2.0
// Reductions over a warp that every lane learns: sums in the tree of numerics/lane_sum.h, maxima, the best of a
// ranking.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe/order_key.h"

namespace quadrille::kernels::cuda {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

// lane[l] + lane[l + d] for d = 16, 8, 4, 2, 1. Upper lanes add the same two numbers the other way round: equal bits.
__device__ __forceinline__ float warp_tree_sum(float own) {
  for (int distance = 16; distance > 0; distance /= 2) own = own + __shfl_xor_sync(kWholeWarp, own, distance);
  return own;
}

// No lane may hold NaN.
__device__ __forceinline__ float warp_maximum(float own) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(kWholeWarp, own, distance);
    own = other > own ? other : own;
  }
  return own;
}

// The first in the order of comes_after().
__device__ __forceinline__ Ranked warp_first(Ranked own) {
  const uint32_t key = __reduce_max_sync(kWholeWarp, own.key);
  const uint32_t index = own.key == key ? static_cast<uint32_t>(own.index) : 0x7fffffffu;
  return {key, static_cast<int32_t>(__reduce_min_sync(kWholeWarp, index))};
}

}  // namespace quadrille::kernels::cuda
