// SPDX-License-Identifier: Apache-2.0
// The rows of a token's experts, added in slot order: eight columns a thread, up to eight rows in flight.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "numerics/bf16.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kColumns = 8;  // of a thread: 16 bytes
constexpr int kAtOnce = 8;   // rows whose loads do not wait for each other
constexpr int kMostThreads = 256;

struct Columns {
  float sum[kColumns];

  __device__ __forceinline__ void add(float weight, const uint4& row) {
    const uint32_t word[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] = numerics::combine_step(weight, numerics::float_of(word[i] << 16), sum[2 * i]);
      sum[2 * i + 1] = numerics::combine_step(weight, numerics::float_of(word[i] & 0xffff0000u), sum[2 * i + 1]);
    }
  }
  __device__ __forceinline__ uint32_t rounded(int i) const {
    return numerics::bf16_from_f32(sum[2 * i]) | static_cast<uint32_t>(numerics::bf16_from_f32(sum[2 * i + 1])) << 16;
  }
};

__device__ __forceinline__ uint4 load_row(const uint16_t* rows, int64_t row, int64_t width, int64_t column) {
  return __ldg(reinterpret_cast<const uint4*>(rows + row * width + column));
}

__global__ void __launch_bounds__(kMostThreads) combine_kernel(DeviceCombine p) {
  const int64_t t = blockIdx.x;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kColumns;
  if (column >= p.width) return;
  uint4 shared_row = {};
  float gate = 1.0f;
  if (p.shared != nullptr) {
    shared_row = load_row(p.shared, t, p.width, column);
    if (p.shared_gate != nullptr) gate = p.shared_gate[t];
  }
  Columns columns = {};
  for (int64_t first = 0; first < p.top_k; first += kAtOnce) {
    int32_t slot[kAtOnce];
    float weight[kAtOnce];
    uint4 row[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const bool exists = first + j < p.top_k;
      slot[j] = exists ? __ldg(p.slot + t * p.top_k + first + j) : -1;
      weight[j] = exists && p.weight != nullptr ? __ldg(p.weight + t * p.top_k + first + j) : 1.0f;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (slot[j] >= 0) row[j] = load_row(p.rows, slot[j], p.width, column);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (slot[j] >= 0) columns.add(weight[j], row[j]);
    }
  }
  if (p.shared != nullptr) columns.add(gate, shared_row);
  *reinterpret_cast<uint4*>(p.out + t * p.width + column) =
      make_uint4(columns.rounded(0), columns.rounded(1), columns.rounded(2), columns.rounded(3));
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

}  // namespace

void combine(const DeviceCombine& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX && p.top_k >= 0, "shapes of the combine");
  QD_CHECK(p.width >= kColumns && p.width % kColumns == 0, "a width that is a multiple of 8");
  QD_CHECK(on_16_bytes(p.rows) && on_16_bytes(p.shared) && on_16_bytes(p.out), "rows on 16 bytes");
  if (p.num_tokens == 0) return;
  const int64_t warps = (p.width / kColumns + 31) / 32;
  const int threads = warps < kMostThreads / 32 ? static_cast<int>(warps) * 32 : kMostThreads;
  const dim3 grid(static_cast<unsigned>(p.num_tokens), ceil_div(p.width / kColumns, threads));
  QD_CHECK(grid.y <= 65535, "a width of at most 134 million");
  combine_kernel<<<grid, threads, 0, native(stream)>>>(p);
  check_launch("combine");
}

}  // namespace quadrille::kernels::cuda
