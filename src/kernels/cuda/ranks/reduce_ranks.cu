// SPDX-License-Identifier: Apache-2.0
// The parts of all ranks, reduced element by element in rank order: the device side of numerics/rank_order.h.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "numerics/rank_order.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1024;  // about eight a multiprocessor; the loop takes the rest

struct Sum {
  __device__ __forceinline__ static float step(float a, float b) { return numerics::add_rank(a, b); }
};
struct Max {
  __device__ __forceinline__ static float step(float a, float b) { return numerics::max_rank(a, b); }
};

template <typename Reduction>
__device__ __forceinline__ float4 step4(float4 a, float4 b) {
  return {Reduction::step(a.x, b.x), Reduction::step(a.y, b.y), Reduction::step(a.z, b.z), Reduction::step(a.w, b.w)};
}
__device__ __forceinline__ float4 canonical4(float4 a) {
  return {numerics::canonical(a.x), numerics::canonical(a.y), numerics::canonical(a.z), numerics::canonical(a.w)};
}

// Groups of four where every part allows it, single floats for the rest. Loads of the ranks do not wait for each other:
// only the additions are a chain.
template <typename Reduction>
__global__ void __launch_bounds__(kThreads) reduce_ranks_kernel(ReduceRanks p, int64_t fours) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t i = first; i < fours; i += stride) {
    float4 sum = reinterpret_cast<const float4*>(p.parts)[i];
#pragma unroll 4
    for (int r = 1; r < p.num_ranks; ++r) {
      sum = step4<Reduction>(sum, reinterpret_cast<const float4*>(p.parts + r * p.pitch)[i]);
    }
    reinterpret_cast<float4*>(p.out)[i] = canonical4(sum);
  }
  for (int64_t i = 4 * fours + first; i < p.count; i += stride) {
    float sum = p.parts[i];
    for (int r = 1; r < p.num_ranks; ++r) sum = Reduction::step(sum, p.parts[r * p.pitch + i]);
    p.out[i] = numerics::canonical(sum);
  }
}

bool by_four(const ReduceRanks& p) {
  return p.pitch % 4 == 0 && (reinterpret_cast<uintptr_t>(p.parts) | reinterpret_cast<uintptr_t>(p.out)) % 16 == 0;
}

}  // namespace

void reduce_ranks(const ReduceRanks& p, device::Stream stream) {
  QD_CHECK(p.num_ranks >= 1 && p.pitch >= p.count, "parts that overlap");
  if (p.count <= 0) return;
  const int64_t fours = by_four(p) ? p.count / 4 : 0;
  const int64_t work = std::max(fours, p.count - 4 * fours);
  const auto blocks = static_cast<unsigned>(std::min(kMostBlocks, (work + kThreads - 1) / kThreads));
  if (p.takes_max) {
    reduce_ranks_kernel<Max><<<blocks, kThreads, 0, native(stream)>>>(p, fours);
  } else {
    reduce_ranks_kernel<Sum><<<blocks, kThreads, 0, native(stream)>>>(p, fours);
  }
  check_launch("reduce_ranks");
}

}  // namespace quadrille::kernels::cuda
