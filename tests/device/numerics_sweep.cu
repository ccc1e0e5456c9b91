// SPDX-License-Identifier: Apache-2.0
// The device's half of numerics_test.cpp.
#include "device/numerics_sweep.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/rowwise/e4m3_pack.cuh"
#include "kernels/cuda/rowwise/quotient.h"

namespace quadrille::testing {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 132 * 16;
constexpr int64_t kStride = int64_t{kThreads} * kBlocks;

__device__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

__global__ void sweep_kernel(Sweep function, uint32_t* out, int64_t count) {
  for (int64_t i = first_index(); i < count; i += kStride) out[i] = sweep_result(function, i);
}

__device__ void note(uint64_t* result, bool differs, uint64_t argument) {
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  if (!differs) return;
  auto* words = reinterpret_cast<unsigned long long*>(result);
  atomicAdd(words, 1ull);
  atomicMax(words + 1, static_cast<unsigned long long>(argument) + 1);
}

__global__ void e4m3_kernel(uint64_t* result) {
  for (int64_t i = first_index(); i < int64_t{1} << 32; i += kStride) {
    const float x = numerics::float_of(static_cast<uint32_t>(i));
    const uint32_t code = numerics::e4m3_from_f32(x);
    const float other = static_cast<float>(i & 7);  // 0..7 are e4m3 values: the other place must not matter
    const uint32_t beside = numerics::e4m3_from_f32(other);
    note(result, kernels::cuda::e4m3_pair(x, other) != (code | beside << 8), i);
    note(result, kernels::cuda::e4m3_pair(other, x) != (beside | code << 8), i);
  }
}

__global__ void quotient_kernel(uint64_t* result) {
  for (int64_t i = first_index(); i < int64_t{1} << 30; i += kStride) {
    const float x = numerics::float_of(0x3f800000u | static_cast<uint32_t>(i >> 23) << 16);
    const float scale = numerics::float_of(0x3f800000u | static_cast<uint32_t>(i & 0x7fffff));
    const float found = kernels::cuda::bf16_quotient(x, kernels::cuda::divisor_of(scale));
    note(result, numerics::bits_of(found) != numerics::bits_of(x / scale), i);
  }
}

// Argument: the row's maximum in bits 15..29, the element's magnitude in bits 0..14; the sign follows the argument.
__global__ void row_codes_kernel(uint64_t* result) {
  for (int64_t i = first_index(); i < int64_t{1} << 30; i += kStride) {
    const uint32_t top = static_cast<uint32_t>(i >> 15), magnitude = static_cast<uint32_t>(i & 0x7fff);
    if (top > 0x7f80u || (magnitude > top && magnitude <= 0x7f80u)) continue;  // NaN may stand in any row
    const float scale = numerics::act_scale_of_absmax(numerics::bf16_to_f32(static_cast<uint16_t>(top)));
    const float x = numerics::bf16_to_f32(static_cast<uint16_t>(magnitude | (top & 1u) << 15));
    const float quotient = kernels::cuda::bf16_quotient(fabsf(x), kernels::cuda::divisor_of(scale));
    const uint32_t found = kernels::cuda::e4m3_pair(copysignf(quotient, x), 0.0f);
    note(result, found != numerics::act_code(x, scale), i);
  }
}

}  // namespace

void run_sweep(Sweep function, uint32_t* out, int64_t count, device::Stream stream) {
  sweep_kernel<<<kBlocks, kThreads, 0, kernels::cuda::native(stream)>>>(function, out, count);
  kernels::cuda::check_launch("sweep_kernel");
}
void compare_e4m3_conversion(uint64_t* result, device::Stream stream) {
  e4m3_kernel<<<kBlocks, kThreads, 0, kernels::cuda::native(stream)>>>(result);
  kernels::cuda::check_launch("e4m3_kernel");
}
void compare_bf16_quotient(uint64_t* result, device::Stream stream) {
  quotient_kernel<<<kBlocks, kThreads, 0, kernels::cuda::native(stream)>>>(result);
  kernels::cuda::check_launch("quotient_kernel");
}
void compare_row_codes(uint64_t* result, device::Stream stream) {
  row_codes_kernel<<<kBlocks, kThreads, 0, kernels::cuda::native(stream)>>>(result);
  kernels::cuda::check_launch("row_codes_kernel");
}

}  // namespace quadrille::testing
