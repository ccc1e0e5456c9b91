// SPDX-License-Identifier: Apache-2.0
// E4(x) of the contract: e4m3fn codes, nearest even, saturating at +-448, no infinity, NaN canonical (0x7F).
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::numerics {

inline constexpr float kE4m3Max = 448.0f;
inline constexpr uint8_t kCanonicalNanE4m3 = 0x7f;

QD_HD constexpr bool e4m3_is_nan(uint8_t code) {
  return (code & 0x7f) == 0x7f;
}

// Exact; 0x7F and 0xFF give the canonical fp32 NaN.
QD_HD constexpr float e4m3_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t a = code & 0x7fu;
  if (a == 0x7f) return float_of(kCanonicalNanF32);
  if (a >= 8) return float_of(sign | ((a << 20) + (120u << 23)));
  return float_of(sign | bits_of(static_cast<float>(a) * exp2_exact(-9)));
}

// E4(x). Infinities give +-448, any NaN 0x7F, -0 gives 0x80.
QD_HD constexpr uint8_t e4m3_from_f32(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 24) & 0x80u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return kCanonicalNanE4m3;
  if (a >= bits_of(kE4m3Max)) return static_cast<uint8_t>(sign | 0x7eu);
  if (a < bits_of(exp2_exact(-6))) {
    // Adding 2^14 puts the unit of the sum at 2^-9, the spacing of e4m3 subnormals.
    const float sum = float_of(a) + 16384.0f;
    return static_cast<uint8_t>(sign | (bits_of(sum) - bits_of(16384.0f)));
  }
  const uint32_t rounded = a + 0x7ffffu + ((a >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

}  // namespace quadrille::numerics
