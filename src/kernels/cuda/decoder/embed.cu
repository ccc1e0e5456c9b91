// SPDX-License-Identifier: Apache-2.0
// Rows of the embedding by ids that lie on the device.
#include "core/check.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/chain.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kMinusZeros = 0x80008000u;

__global__ void __launch_bounds__(kThreads) embed_kernel(const __grid_constant__ DeviceEmbed p) {
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t t = blockIdx.x;
  const int64_t row = static_cast<int64_t>(p.ids[t]) - p.first_row;
  const bool is_here = row >= 0 && row < p.num_rows;
  const int64_t vectors = p.width / kVectorColumns;
  for (int64_t i = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x; i < vectors;
       i += static_cast<int64_t>(gridDim.y) * kThreads) {
    const uint4 v = is_here ? __ldg(reinterpret_cast<const uint4*>(p.table + row * p.width) + i)
                            : make_uint4(kMinusZeros, kMinusZeros, kMinusZeros, kMinusZeros);
    if (p.out != nullptr) reinterpret_cast<uint4*>(p.out + t * p.width)[i] = v;
    if (p.out_f32 == nullptr) continue;
    float x[8];
    unpack(v, x);
    float4* out = reinterpret_cast<float4*>(p.out_f32 + t * p.width) + 2 * i;
    out[0] = make_float4(x[0], x[1], x[2], x[3]);
    out[1] = make_float4(x[4], x[5], x[6], x[7]);
  }
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

}  // namespace

void embed(const DeviceEmbed& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX && p.num_rows >= 0, "shapes of the embedding");
  QD_CHECK(p.width >= kVectorColumns && p.width % kVectorColumns == 0, "a width that is a multiple of 8");
  QD_CHECK(on_16_bytes(p.table) && on_16_bytes(p.out) && on_16_bytes(p.out_f32), "rows on 16 bytes");
  if (p.num_tokens == 0) return;
  const int blocks = ceil_div(p.width / kVectorColumns, kThreads);
  const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(blocks < 1024 ? blocks : 1024));
  launch_chained(embed_kernel, grid, kThreads, 0, native(stream), p);
  check_launch("embed");
}

}  // namespace quadrille::kernels::cuda
