// SPDX-License-Identifier: Apache-2.0
// The largest magnitude of a row of bf16 values, 16 bytes a load, a block a row. Used by the quantisation and by the
// exchange of absmax between ranks.
#pragma once

#include <cstdint>

#include "numerics/act_quant.h"
#include "numerics/bits.h"

namespace quadrille::kernels::cuda {

inline constexpr int kWarpLanes = 32;
inline constexpr int kVectorColumns = 8;  // of 16 bytes of bf16

__device__ __forceinline__ float low_half(uint32_t word) {
  return numerics::float_of(word << 16);
}
__device__ __forceinline__ float high_half(uint32_t word) {
  return numerics::float_of(word & 0xffff0000u);
}

__device__ __forceinline__ float absmax_of(float m, const uint4& v) {
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    m = numerics::absmax_step(m, low_half(word[i]));
    m = numerics::absmax_step(m, high_half(word[i]));
  }
  return m;
}

// The maximum of all threads; `of_warps` holds a word a warp. Magnitudes without NaN order like their bits.
__device__ __forceinline__ float block_maximum(float own, uint32_t* of_warps) {
  constexpr unsigned kWholeWarp = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int num_warps = static_cast<int>(blockDim.x) / kWarpLanes;
  const uint32_t of_warp = __reduce_max_sync(kWholeWarp, numerics::bits_of(own));
  if (num_warps == 1) return numerics::float_of(of_warp);
  __syncthreads();  // pairs with the one below: an earlier row's maxima are read
  if (lane == 0) of_warps[warp] = of_warp;
  __syncthreads();  // the maxima of all warps stand
  return numerics::float_of(__reduce_max_sync(kWholeWarp, lane < num_warps ? of_warps[lane] : 0u));
}

}  // namespace quadrille::kernels::cuda
