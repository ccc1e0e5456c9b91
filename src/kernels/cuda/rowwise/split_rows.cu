// SPDX-License-Identifier: Apache-2.0
// What tensor-parallel ranks need beside the steps of one rank (docs/numerics.md section 6): the absmax of the columns
// that are here, before the exchange, and the one rounding after the sum.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/rowwise/row_maximum.cuh"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kRoundThreads = 256;
constexpr int64_t kMostRowBlocks = 1 << 20;
constexpr int64_t kMostRoundBlocks = 2048;  // the loop takes the rest

// A block takes every gridDim.x-th row.
__global__ void __launch_bounds__(kMostThreads) row_absmax_kernel(RowAbsmax p) {
  __shared__ uint32_t of_warps[kWarpLanes];
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t vectors = p.k / kVectorColumns;
  const int64_t there = p.rows_there != nullptr ? static_cast<int64_t>(*p.rows_there) : p.num_rows;
  for (int64_t r = blockIdx.x; r < p.num_rows; r += gridDim.x) {
    float maximum = 0.0f;
    if (r < there) {  // the same for the whole block
      const uint4* x = reinterpret_cast<const uint4*>(p.x + r * p.k);
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) maximum = absmax_of(maximum, x[i]);
      maximum = block_maximum(maximum, of_warps);
    }
    if (threadIdx.x == 0) p.absmax[r] = maximum;
  }
}

__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  return numerics::bf16_from_f32(low) | static_cast<uint32_t>(numerics::bf16_from_f32(high)) << 16;
}

// Fours where both sides allow it, single values for the rest.
__global__ void __launch_bounds__(kRoundThreads) round_to_bf16_kernel(RoundToBf16 p, int64_t fours) {
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kRoundThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRoundThreads + threadIdx.x;
  for (int64_t i = first; i < fours; i += stride) {
    const float4 v = reinterpret_cast<const float4*>(p.x)[i];
    reinterpret_cast<uint2*>(p.out)[i] = make_uint2(rounded_pair(v.x, v.y), rounded_pair(v.z, v.w));
  }
  for (int64_t i = 4 * fours + first; i < p.count; i += stride) p.out[i] = numerics::bf16_from_f32(p.x[i]);
}

}  // namespace

void row_absmax(const RowAbsmax& p, device::Stream stream) {
  QD_CHECK(p.k >= kVectorColumns && p.k % kVectorColumns == 0, "rows of a multiple of 8 columns");
  QD_CHECK(reinterpret_cast<uintptr_t>(p.x) % 16 == 0, "rows on 16 bytes");
  if (p.num_rows <= 0) return;
  const int64_t warps = (p.k / kVectorColumns + kWarpLanes - 1) / kWarpLanes;
  const int threads = static_cast<int>(std::min<int64_t>(warps, kMostThreads / kWarpLanes)) * kWarpLanes;
  const auto blocks = static_cast<unsigned>(std::min(p.num_rows, kMostRowBlocks));
  launch_chained(row_absmax_kernel, blocks, threads, 0, native(stream), p);
  check_launch("row_absmax");
}

void round_to_bf16(const RoundToBf16& p, device::Stream stream) {
  if (p.count <= 0) return;
  const bool by_four =
      reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && reinterpret_cast<uintptr_t>(p.out) % sizeof(uint2) == 0;
  const int64_t fours = by_four ? p.count / 4 : 0;
  const int64_t work = std::max(fours, p.count - 4 * fours);
  const auto blocks = static_cast<unsigned>(std::min(kMostRoundBlocks, (work + kRoundThreads - 1) / kRoundThreads));
  launch_chained(round_to_bf16_kernel, blocks, kRoundThreads, 0, native(stream), p, fours);
  check_launch("round_to_bf16");
}

}  // namespace quadrille::kernels::cuda
