// SPDX-License-Identifier: Apache-2.0
// Eight bf16 of a row in 16 bytes, and their e4m3 codes.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/rowwise/e4m3_pack.cuh"
#include "kernels/cuda/rowwise/quotient.h"
#include "numerics/bf16.h"
#include "numerics/bits.h"

namespace quadrille::kernels::cuda {

inline constexpr int kVectorColumns = 8;

__device__ __forceinline__ void unpack(const uint4& v, float (&x)[8]) {
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = numerics::float_of(word[i] << 16);
    x[2 * i + 1] = numerics::float_of(word[i] & 0xffff0000u);
  }
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word[i] = ptx::bf16_pair(x[2 * i], x[2 * i + 1]);
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// Codes of eight bf16 values of a row with that divisor: act_code of each.
__device__ __forceinline__ uint2 e4m3_codes(const float (&x)[8], const Divisor& d) {
  uint32_t code[8 / 2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = x[2 * i], high = x[2 * i + 1];
    code[i] = e4m3_pair(copysignf(bf16_quotient(fabsf(low), d), low), copysignf(bf16_quotient(fabsf(high), d), high));
  }
  return make_uint2(code[0] | code[1] << 16, code[2] | code[3] << 16);
}

}  // namespace quadrille::kernels::cuda
