// SPDX-License-Identifier: Apache-2.0
// What a thread of the combine kernels adds: a few columns of a token's rows, in slot order (docs/numerics.md section
// 4). Used by combine.cu and by the combine of expert-parallel ranks (ranks/combine_ranks.cu).
#pragma once

#include <cstdint>

#include "numerics/bf16.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {

inline constexpr int kRowsAtOnce = 8;  // rows whose loads do not wait for each other
inline constexpr int kMostCombineThreads = 256;

// What a thread adds of rows of bf16 codes: eight columns, 16 bytes.
struct Bf16Columns {
  using Value = uint16_t;
  static constexpr int kColumns = 8;
  float sum[kColumns] = {};

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
  __device__ __forceinline__ uint4 result() const { return make_uint4(rounded(0), rounded(1), rounded(2), rounded(3)); }
};

// And of fp32 rows: four columns, not rounded.
struct F32Columns {
  using Value = float;
  static constexpr int kColumns = 4;
  float sum[kColumns] = {};

  __device__ __forceinline__ void add(float weight, const uint4& row) {
    const uint32_t word[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = numerics::combine_step(weight, numerics::float_of(word[i]), sum[i]);
  }
  __device__ __forceinline__ uint32_t bits(int i) const { return numerics::bits_of(numerics::canonical(sum[i])); }
  __device__ __forceinline__ uint4 result() const { return make_uint4(bits(0), bits(1), bits(2), bits(3)); }
};

}  // namespace quadrille::kernels::cuda
