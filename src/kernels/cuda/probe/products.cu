// SPDX-License-Identifier: Apache-2.0
// Products of operands that are there: tokens in shared memory, weights in registers, as in the W4A8 product
// (w4a8_gemm/mainloop.cuh), without conversion, promotion or refill.
#include "core/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/probe/probe_kernels.h"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kTokens = 128;
constexpr int kThreads = 256;  // two warpgroups
constexpr int kBlocksAMultiprocessor = 2;
constexpr int kSteps = 4;  // of k32: the 128 bytes of a row
// Two bytes of 16 keep the exponent below 8: values up to 1.875 in magnitude, no NaN.
constexpr uint32_t kFinite = 0xbfbfbfbfu;

__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor) products_kernel(DeviceProbeProducts p) {
  __shared__ __align__(1024) uint32_t tokens[kTokens * 128 / 4];
  const auto* values = reinterpret_cast<const uint32_t*>(p.values);
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * 128 / 4; i += kThreads) tokens[i] = values[i] & kFinite;
  uint32_t weights[kSteps * 4];
#pragma unroll
  for (int i = 0; i < kSteps * 4; ++i) weights[i] = values[(i * kThreads + threadIdx.x) % (kTokens * 32)] & kFinite;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // the tensor cores read what the threads wrote
  __syncthreads();
  const uint64_t descriptor = ptx::swizzled_descriptor(ptx::shared_address(tokens));
  // One chain over all loops: sums that begin anew leave the loop before them dead, and ptxas drops its products.
  float sum[kTokens / 2] = {};
  for (int64_t loop = 0; loop < p.loops; ++loop) {
    ptx::pin(sum);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) ptx::wgmma<kTokens>(sum, weights + s * 4, descriptor + s * 2, true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::pin(sum);
  }
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) all += sum[i];
  if (all == 12345.678f) *p.sink = all;  // or the products would be dropped
}

}  // namespace

void probe_products(const DeviceProbeProducts& p, device::Stream stream) {
  QD_CHECK(p.loops > 0 && p.num_multiprocessors > 0, "loops, and who makes them");
  products_kernel<<<p.num_multiprocessors * kBlocksAMultiprocessor, kThreads, 0, native(stream)>>>(p);
  check_launch("probe_products");
}

}  // namespace quadrille::kernels::cuda
