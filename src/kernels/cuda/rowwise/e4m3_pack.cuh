// SPDX-License-Identifier: Apache-2.0
// e4m3 codes by the hardware's conversion, which equals numerics::e4m3_from_f32 for every one of the 2^32 fp32 values
// (tests/device/numerics_test.cpp compares them all): nearest even, saturating, NaN 0x7F, -0 0x80.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda {

// Codes of `low` in bits 0..7 and of `high` in bits 8..15.
__device__ __forceinline__ uint32_t e4m3_pair(float low, float high) {
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
}

}  // namespace quadrille::kernels::cuda
