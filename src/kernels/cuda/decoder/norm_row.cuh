// SPDX-License-Identifier: Apache-2.0
// The pieces of a row on its way through residual sum, RMSNorm and FP8 codes, in the order of docs/numerics.md: whoever
// puts them together has the bits of add_norm. Used by add_norm.cu and, in front of the router's logits,
// by moe/norm_and_route.cu.
#pragma once

#include "kernels/api/device_problems.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/moe/combine_columns.cuh"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/act_quant.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {

inline constexpr int kNormLanes = 32;

__device__ __forceinline__ uint4 vector_at(const uint16_t* rows, int64_t row, int64_t width, int64_t i) {
  return *(reinterpret_cast<const uint4*>(rows + row * width) + i);
}

// Slots and weights of a row, kAtOnce at a time.
template <int kAtOnce>
struct Routes {
  int32_t slot[kAtOnce];
  float weight[kAtOnce];

  __device__ __forceinline__ void load(const DeviceCombine& p, int64_t t, int64_t first) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const bool exists = first + j < p.top_k;
      slot[j] = exists ? p.slot[t * p.top_k + first + j] : -1;
      weight[j] = exists && p.weight != nullptr ? p.weight[t * p.top_k + first + j] : 1.0f;
    }
  }
};

// Vector i of row t of the combine's result: the chain of combine.cu. `routes`: the row's first.
template <int kAtOnce>
__device__ __forceinline__ uint4 combined(const DeviceCombine& p, int64_t t, int64_t i, Routes<kAtOnce> routes) {
  const int64_t column = i * kVectorColumns;
  uint4 shared_row = {};
  float gate = 1.0f;
  if (p.shared != nullptr) {
    shared_row = vector_at(p.shared, t, p.width, i);
    if (p.shared_gate != nullptr) gate = p.shared_gate[t];
  }
  Bf16Columns columns = {};
  for (int64_t first = 0; first < p.top_k; first += kAtOnce) {
    uint4 row[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (routes.slot[j] >= 0) row[j] = *reinterpret_cast<const uint4*>(p.rows + routes.slot[j] * p.width + column);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (routes.slot[j] >= 0) columns.add(routes.weight[j], row[j]);
    }
    if (first + kAtOnce < p.top_k) routes.load(p, t, first + kAtOnce);
  }
  if (p.shared != nullptr) columns.add(gate, shared_row);
  return columns.result();
}

__device__ __forceinline__ uint4 sum_of(const uint4& a, const uint4& b) {
  float x[8], y[8];
  unpack(a, x);
  unpack(b, y);
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] + y[j];
  return pack(x);
}

// The lane's chain of squares over a row of bf16. Short code: whatever runs once is fetched before it runs.
__device__ __forceinline__ float squares_of_lane(const uint16_t* row, int width, int lane) {
  constexpr int kBatch = 32;
  float sum = 0.0f;
  int i = lane;
#pragma unroll 1
  for (; i + (kBatch - 1) * kNormLanes < width; i += kBatch * kNormLanes) {
    uint16_t code[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) code[j] = row[i + j * kNormLanes];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const float x = numerics::bf16_to_f32(code[j]);
      sum = __builtin_fmaf(x, x, sum);
    }
  }
#pragma unroll 1
  for (; i < width; i += kNormLanes) {
    const float x = numerics::bf16_to_f32(row[i]);
    sum = __builtin_fmaf(x, x, sum);
  }
  return sum;
}

// x becomes its norm; returns the largest magnitude.
__device__ __forceinline__ float normalised(uint4& v, const uint4& weight, float scale, float absmax) {
  float x[8], w[8];
  unpack(v, x);
  unpack(weight, w);
  // numerics::rms_norm_value(), two values a conversion.
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] * scale;
  unpack(pack(x), x);
#pragma unroll
  for (int j = 0; j < 8; ++j) x[j] = x[j] * w[j];
  v = pack(x);
  unpack(v, x);
#pragma unroll
  for (int j = 0; j < 8; ++j) absmax = numerics::absmax_step(absmax, x[j]);
  return absmax;
}

// The scale of the row's codes from the largest magnitude of each thread; all threads of the block call it. `of_warps`
// [32] shared. Magnitudes without NaN order like their bits.
__device__ __forceinline__ float scale_of_block(float absmax, uint32_t* of_warps) {
  const int lane = static_cast<int>(threadIdx.x) % kNormLanes;
  const int num_warps = static_cast<int>(blockDim.x) / kNormLanes;
  const uint32_t of_warp = __reduce_max_sync(kWholeWarp, numerics::bits_of(absmax));
  if (lane == 0) of_warps[threadIdx.x / kNormLanes] = of_warp;
  __syncthreads();  // the maxima of all warps stand
  return numerics::act_scale_of_absmax(
      numerics::float_of(__reduce_max_sync(kWholeWarp, lane < num_warps ? of_warps[lane] : 0u)));
}

}  // namespace quadrille::kernels::cuda
