// SPDX-License-Identifier: Apache-2.0
// Bit casts and the canonical NaN of fp32: every fp32 value that a kernel stores passes canonical() once, so that NaN
// has the same bits on every backend (docs/numerics.md section 1).
#pragma once

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::numerics {

inline constexpr uint32_t kCanonicalNanF32 = 0x7fffffffu;

QD_HD constexpr uint32_t bits_of(float x) {
  return __builtin_bit_cast(uint32_t, x);
}

QD_HD constexpr float float_of(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

// True for NaN, by bits: no compiler flag and no signalling NaN can change the answer.
QD_HD constexpr bool is_nan(float x) {
  return (bits_of(x) & 0x7fffffffu) > 0x7f800000u;
}

// x, or the canonical NaN 0x7fffffff where x is any NaN.
QD_HD constexpr float canonical(float x) {
  return is_nan(x) ? float_of(kCanonicalNanF32) : x;
}

// |x| by clearing the sign bit.
QD_HD constexpr float abs_f32(float x) {
  return float_of(bits_of(x) & 0x7fffffffu);
}

// 2^e for -126 <= e <= 127, built from the exponent field.
QD_HD constexpr float exp2_exact(int e) {
  return float_of(static_cast<uint32_t>(e + 127) << 23);
}

}  // namespace quadrille::numerics
