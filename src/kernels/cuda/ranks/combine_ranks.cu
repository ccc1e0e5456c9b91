// SPDX-License-Identifier: Apache-2.0
// The combine of moe/combine.cu over rows that lie in the memory of the ranks that computed them: the same additions in
// the same order, so the same bits as on one GPU.
#include "core/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/combine_columns.cuh"
#include "kernels/cuda/ranks/peer_kernels.h"

namespace quadrille::kernels::cuda {
namespace {

// Where the row of a route lies; null: nowhere.
template <typename Value>
__device__ __forceinline__ const Value* row_of_route(const CombineRanks& p, int64_t route) {
  const int32_t id = __ldg(p.ids + route);
  if (id < 0 || id >= p.num_experts) return nullptr;
  const int32_t rank = __ldg(p.serving + id);
  if (rank < 0 || rank >= p.num_ranks) return nullptr;
  int64_t row = route;
  if (p.slots[rank] != nullptr) row = p.slots[rank][route];
  return row < 0 ? nullptr : static_cast<const Value*>(p.rows[rank]) + row * p.width;
}

template <typename Columns>
__global__ void __launch_bounds__(kMostCombineThreads) combine_ranks_kernel(const __grid_constant__ CombineRanks p) {
  using Value = typename Columns::Value;
  const int64_t t = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * Columns::kColumns;
  if (column >= p.width) return;
  uint4 shared_row = {};
  float gate = 1.0f;
  if (p.shared != nullptr) {
    shared_row = __ldg(reinterpret_cast<const uint4*>(static_cast<const Value*>(p.shared) + t * p.width + column));
    if (p.shared_gate != nullptr) gate = p.shared_gate[t];
  }
  Columns columns = {};
  for (int64_t first = 0; first < p.top_k; first += kRowsAtOnce) {
    const Value* from[kRowsAtOnce];
    float weight[kRowsAtOnce];
    uint4 row[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const bool exists = first + j < p.top_k;
      from[j] = exists ? row_of_route<Value>(p, t * p.top_k + first + j) : nullptr;
      weight[j] = exists && p.weight != nullptr ? __ldg(p.weight + t * p.top_k + first + j) : 1.0f;
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      if (from[j] != nullptr) row[j] = *reinterpret_cast<const uint4*>(from[j] + column);
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      if (from[j] != nullptr) columns.add(weight[j], row[j]);
    }
  }
  if (p.shared != nullptr) columns.add(gate, shared_row);
  *reinterpret_cast<uint4*>(static_cast<Value*>(p.out) + t * p.width + column) = columns.result();
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

template <typename Columns>
void launch(const CombineRanks& p, device::Stream stream) {
  const int64_t pieces = p.width / Columns::kColumns;
  const int64_t warps = (pieces + 31) / 32;
  const int threads = warps < kMostCombineThreads / 32 ? static_cast<int>(warps) * 32 : kMostCombineThreads;
  const dim3 grid(static_cast<unsigned>(p.num_tokens), ceil_div(pieces, threads));
  QD_CHECK(grid.y <= 65535, "a width of at most 67 million");
  combine_ranks_kernel<Columns><<<grid, threads, 0, native(stream)>>>(p);
  check_launch("combine_ranks");
}

}  // namespace

void combine_ranks(const CombineRanks& p, device::Stream stream) {
  QD_CHECK(p.num_ranks >= 1 && p.num_ranks <= kMaxExpertRanks, "ranks of a layer");
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX && p.top_k >= 0, "shapes of the combine");
  QD_CHECK(p.width >= 8 && p.width % 8 == 0, "a width that is a multiple of 8");
  QD_CHECK(on_16_bytes(p.shared) && on_16_bytes(p.out), "rows on 16 bytes");
  for (int r = 0; r < p.num_ranks; ++r) QD_CHECK(on_16_bytes(p.rows[r]), "rows on 16 bytes");
  if (p.num_tokens == 0) return;
  if (p.partial) {
    launch<F32Columns>(p, stream);
  } else {
    launch<Bf16Columns>(p, stream);
  }
}

std::vector<const void*> combine_ranks_kernels() {
  return {reinterpret_cast<const void*>(combine_ranks_kernel<Bf16Columns>),
          reinterpret_cast<const void*>(combine_ranks_kernel<F32Columns>)};
}

}  // namespace quadrille::kernels::cuda
