// SPDX-License-Identifier: Apache-2.0
// Residual sum, RMSNorm and FP8 codes in one pass over a row: a block a row, the row in shared memory. The sum of
// squares is 32 chains (numerics/lane_sum.h): the lanes of one warp, while the others wait.
#include "core/check.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/act_quant.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kMostThreads = 512;
constexpr int64_t kMostWidth = 24000;  // of a row in shared memory

__device__ __forceinline__ uint4 added(const DeviceAddNorm& p, int64_t row, int64_t i) {
  const uint4 v = *(reinterpret_cast<const uint4*>(p.x + row * p.width) + i);
  if (p.update == nullptr && p.update_f32 == nullptr) return v;
  float x[8], y[8];
  unpack(v, x);
  if (p.update != nullptr) {
    unpack(*(reinterpret_cast<const uint4*>(p.update + row * p.width) + i), y);
  } else {
    const float4* update = reinterpret_cast<const float4*>(p.update_f32 + row * p.width) + 2 * i;
    const float4 a = update[0], b = update[1];
    const float sum[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) y[j] = numerics::round_to_bf16(sum[j]);
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] + y[j];
  const uint4 result = pack(x);
  *(reinterpret_cast<uint4*>(p.x + row * p.width) + i) = result;
  return result;
}

// The lane's chain of squares over a row of bf16.
__device__ __forceinline__ float squares_of_lane(const uint16_t* row, int64_t width, int lane) {
  float sum = 0.0f;
#pragma unroll 16
  for (int64_t i = lane; i < width; i += kLanes) {
    const float x = numerics::bf16_to_f32(row[i]);
    sum = __builtin_fmaf(x, x, sum);
  }
  return sum;
}

// The row becomes its norm, here and in p.normed; returns the thread's largest magnitude.
__device__ __forceinline__ float normalise(const DeviceAddNorm& p, int64_t r, float scale, uint4* row) {
  float absmax = 0.0f;
  for (int64_t i = threadIdx.x; i < p.width / kVectorColumns; i += blockDim.x) {
    float x[8], w[8];
    unpack(row[i], x);
    unpack(__ldg(reinterpret_cast<const uint4*>(p.weight) + i), w);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      x[j] = numerics::rms_norm_value(x[j], scale, w[j], true);
      absmax = numerics::absmax_step(absmax, x[j]);
    }
    const uint4 v = pack(x);
    row[i] = v;
    if (p.normed != nullptr) reinterpret_cast<uint4*>(p.normed + r * p.width)[i] = v;
  }
  return absmax;
}

__global__ void __launch_bounds__(kMostThreads) add_norm_kernel(DeviceAddNorm p) {
  extern __shared__ __align__(16) uint4 row[];
  __shared__ float norm_scale;
  __shared__ uint32_t of_warps[kLanes];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t r = blockIdx.x;
  const int64_t t = p.rows == nullptr ? r : p.rows[r];
  const int64_t vectors = p.width / kVectorColumns;
  for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) row[i] = added(p, t, i);
  if (p.weight == nullptr) return;
  __syncthreads();  // the row stands
  if (warp == 0) {
    const float sum = warp_tree_sum(squares_of_lane(reinterpret_cast<const uint16_t*>(row), p.width, lane));
    if (lane == 0) norm_scale = numerics::rms_scale(sum, p.width, p.eps);
  }
  __syncthreads();  // its scale stands
  const float absmax = normalise(p, r, norm_scale, row);
  if (p.act == nullptr) return;
  // Magnitudes without NaN order like their bits.
  const uint32_t of_warp = __reduce_max_sync(kWholeWarp, numerics::bits_of(absmax));
  if (lane == 0) of_warps[warp] = of_warp;
  __syncthreads();  // the maxima of all warps stand
  const int num_warps = static_cast<int>(blockDim.x) / kLanes;
  const float top = numerics::float_of(__reduce_max_sync(kWholeWarp, lane < num_warps ? of_warps[lane] : 0u));
  const float scale = numerics::act_scale_of_absmax(top);
  if (threadIdx.x == 0) p.act_scale[r] = scale;
  const Divisor divisor = divisor_of(scale);
  uint2* codes = reinterpret_cast<uint2*>(p.act + r * p.act_pitch);
  for (int64_t i = threadIdx.x; i < p.act_pitch / kVectorColumns; i += blockDim.x) {
    float x[8];
    if (i < vectors) unpack(row[i], x);
    codes[i] = i < vectors ? e4m3_codes(x, divisor) : make_uint2(0, 0);
  }
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

}  // namespace

void add_norm(const DeviceAddNorm& p, device::Stream stream) {
  QD_CHECK(p.num_rows >= 0 && p.num_rows <= INT32_MAX, "rows of the norm");
  QD_CHECK(p.width >= kVectorColumns && p.width % kVectorColumns == 0 && p.width <= kMostWidth,
           "a width that is a multiple of 8, at most 24000");
  QD_CHECK(p.update == nullptr || p.update_f32 == nullptr, "one update");
  QD_CHECK(on_16_bytes(p.x) && on_16_bytes(p.update) && on_16_bytes(p.update_f32) && on_16_bytes(p.weight) &&
               on_16_bytes(p.normed) && on_16_bytes(p.act),
           "rows on 16 bytes");
  QD_CHECK(p.act == nullptr || (p.act_pitch >= p.width && p.act_pitch % 16 == 0), "a pitch that holds the codes");
  QD_CHECK(p.weight != nullptr || (p.normed == nullptr && p.act == nullptr), "weights of the norm");
  if (p.num_rows == 0) return;
  const int64_t warps = (p.width / kVectorColumns + kLanes - 1) / kLanes;
  const auto threads = static_cast<unsigned>(warps * kLanes < kMostThreads ? warps * kLanes : kMostThreads);
  add_norm_kernel<<<static_cast<unsigned>(p.num_rows), threads, p.width * 2, native(stream)>>>(p);
  check_launch("add_norm");
}

}  // namespace quadrille::kernels::cuda
