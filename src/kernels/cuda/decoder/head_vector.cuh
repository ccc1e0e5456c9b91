// SPDX-License-Identifier: Apache-2.0
// What happens to a vector of eight dimensions of a head: norm, clip, rotary embedding, two values at a time where the
// hardware rounds pairs. The bits of numerics/elementwise.h. Called by split_heads.cu.
#pragma once

#include "kernels/api/device_decoder_problems.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {

inline constexpr int kVector = kVectorColumns;

__device__ __forceinline__ float low_value(uint32_t word) {
  return numerics::float_of(word << 16);
}
__device__ __forceinline__ float high_value(uint32_t word) {
  return numerics::float_of(word & 0xffff0000u);
}
__device__ __forceinline__ uint32_t word_at(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// NaN stays: both comparisons are false.
__device__ __forceinline__ float clipped(float x, float bound) {
  return x > bound ? bound : x < -bound ? -bound : x;
}

// --- Rotary embedding ---

// Of the lane's eight dimensions. By vector: half the rotated dimensions are a multiple of eight, and the rows of the
// tables lie on 16 bytes.
struct Rotation {
  float cos[kVector];
  float sin[kVector];  // by vector: negated in the first half
};
__device__ __forceinline__ void load_four(const float* from, float* to) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}
template <bool ByVector>
__device__ __forceinline__ void load_rotation(const DeviceQkv& p, int64_t position, int vec, Rotation& r) {
  const int half = static_cast<int>(p.rotary_dim) / 2;
  const int first = vec * kVector;
  const float* cos = p.cos + position * half;
  const float* sin = p.sin + position * half;
  if constexpr (ByVector) {
    if (first >= 2 * half) return;
    const int angle = first < half ? first : first - half;
#pragma unroll
    for (int j = 0; j < kVector; j += 4) {
      load_four(cos + angle + j, r.cos + j);
      load_four(sin + angle + j, r.sin + j);
    }
    if (first >= half) return;
#pragma unroll
    for (int j = 0; j < kVector; ++j) r.sin[j] = -r.sin[j];
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int i = first + j;
      if (i >= 2 * half) continue;
      r.cos[j] = __ldg(cos + (i < half ? i : i - half));
      r.sin[j] = __ldg(sin + (i < half ? i : i - half));
    }
  }
}

// The lane's values of the head in `row` after the rotation, rounded. rope_first is own * cos - other * sin,
// rope_second own * cos + other * sin: each product rounded, then the sum; a negated factor negates a rounded product.
template <bool ByVector>
__device__ __forceinline__ uint4 rotated(const DeviceQkv& p, const Rotation& r, const uint4* row, int vec,
                                         const uint4& own) {
  const int half = static_cast<int>(p.rotary_dim) / 2;
  const int first = vec * kVector;
  float x[kVector];
  unpack(own, x);
  if constexpr (ByVector) {
    if (first < 2 * half) {
      float y[kVector];
      unpack(row[first < half ? vec + half / kVector : vec - half / kVector], y);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = x[j] * r.cos[j] + y[j] * r.sin[j];
    }
  } else {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int i = first + j;
      if (i >= 2 * half) continue;
      const float y = numerics::bf16_to_f32(values[i < half ? i + half : i - half]);
      x[j] = i < half ? numerics::rope_first(x[j], y, r.cos[j], r.sin[j], true)
                      : numerics::rope_second(y, x[j], r.cos[j], r.sin[j], true);
    }
  }
  return make_uint4(ptx::bf16_pair(x[0], x[1]), ptx::bf16_pair(x[2], x[3]), ptx::bf16_pair(x[4], x[5]),
                    ptx::bf16_pair(x[6], x[7]));
}

// --- Norm and clip ---

// rms_norm_value of two values.
__device__ __forceinline__ uint32_t normed_pair(uint32_t x, float scale, uint32_t weight) {
  const uint32_t scaled = ptx::bf16_pair(low_value(x) * scale, high_value(x) * scale);
  return ptx::bf16_pair(low_value(scaled) * low_value(weight), high_value(scaled) * high_value(weight));
}
__device__ __forceinline__ uint4 normed(const uint4& x, float scale, const uint4& weight) {
  return make_uint4(normed_pair(x.x, scale, weight.x), normed_pair(x.y, scale, weight.y),
                    normed_pair(x.z, scale, weight.z), normed_pair(x.w, scale, weight.w));
}
__device__ __forceinline__ uint32_t clipped_pair(uint32_t x, float bound) {
  return ptx::bf16_pair(clipped(low_value(x), bound), clipped(high_value(x), bound));
}
// A NaN gets its one face.
__device__ __forceinline__ uint4 canonical_vector(const uint4& v) {
  float x[kVector];
  unpack(v, x);
  return make_uint4(ptx::bf16_pair(x[0], x[1]), ptx::bf16_pair(x[2], x[3]), ptx::bf16_pair(x[4], x[5]),
                    ptx::bf16_pair(x[6], x[7]));
}

}  // namespace quadrille::kernels::cuda
