// SPDX-License-Identifier: Apache-2.0
// The rows of a token's experts, added in slot order: 16 bytes of a row a thread, up to eight rows in flight. Rows are
// bf16, or the fp32 partial rows of a tensor-parallel rank.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/combine_columns.cuh"
#include "kernels/cuda/ptx/chain.cuh"

namespace quadrille::kernels::cuda {
namespace {

template <typename Value>
__device__ __forceinline__ uint4 load_row(const Value* rows, int64_t row, int64_t width, int64_t column) {
  return *reinterpret_cast<const uint4*>(rows + row * width + column);
}

template <typename Columns, typename Problem>
__global__ void __launch_bounds__(kMostCombineThreads) combine_kernel(const __grid_constant__ Problem p) {
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t t = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * Columns::kColumns;
  if (column >= p.width) return;
  uint4 shared_row = {};
  float gate = 1.0f;
  if (p.shared != nullptr) {
    shared_row = load_row(p.shared, t, p.width, column);
    if (p.shared_gate != nullptr) gate = p.shared_gate[t];
  }
  Columns columns = {};
  for (int64_t first = 0; first < p.top_k; first += kRowsAtOnce) {
    int32_t slot[kRowsAtOnce];
    float weight[kRowsAtOnce];
    uint4 row[kRowsAtOnce];
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      const bool exists = first + j < p.top_k;
      slot[j] = exists ? p.slot[t * p.top_k + first + j] : -1;
      weight[j] = exists && p.weight != nullptr ? p.weight[t * p.top_k + first + j] : 1.0f;
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      if (slot[j] >= 0) row[j] = load_row(p.rows, slot[j], p.width, column);
    }
#pragma unroll
    for (int j = 0; j < kRowsAtOnce; ++j) {
      if (slot[j] >= 0) columns.add(weight[j], row[j]);
    }
  }
  if (p.shared != nullptr) columns.add(gate, shared_row);
  *reinterpret_cast<uint4*>(p.out + t * p.width + column) = columns.result();
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

template <typename Columns, typename Problem>
void launch(const Problem& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX && p.top_k >= 0, "shapes of the combine");
  QD_CHECK(p.width >= 8 && p.width % 8 == 0, "a width that is a multiple of 8");
  QD_CHECK(on_16_bytes(p.rows) && on_16_bytes(p.shared) && on_16_bytes(p.out), "rows on 16 bytes");
  if (p.num_tokens == 0) return;
  const int64_t pieces = p.width / Columns::kColumns;
  const int64_t warps = (pieces + 31) / 32;
  const int threads = warps < kMostCombineThreads / 32 ? static_cast<int>(warps) * 32 : kMostCombineThreads;
  const dim3 grid(static_cast<unsigned>(p.num_tokens), ceil_div(pieces, threads));
  QD_CHECK(grid.y <= 65535, "a width of at most 67 million");
  const auto kernel = combine_kernel<Columns, Problem>;
  launch_chained(kernel, grid, threads, 0, native(stream), p);
  check_launch("combine");
}

}  // namespace

void combine(const DeviceCombine& p, device::Stream stream) {
  launch<Bf16Columns>(p, stream);
}

void combine_partial(const DeviceCombinePartial& p, device::Stream stream) {
  launch<F32Columns>(p, stream);
}

}  // namespace quadrille::kernels::cuda
