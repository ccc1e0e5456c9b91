// SPDX-License-Identifier: Apache-2.0
// IEEE half <-> fp32: nearest even, overflow to infinity, subnormals kept, NaN canonical (0x7FFF).
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::numerics {

// Exact; any NaN gives the canonical fp32 NaN.
QD_HD constexpr float f16_to_f32(uint16_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x8000u) << 16;
  const uint32_t exponent = (code >> 10) & 31u;
  const uint32_t mantissa = code & 0x3ffu;
  if (exponent == 31) return mantissa != 0 ? float_of(kCanonicalNanF32) : float_of(sign | 0x7f800000u);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * exp2_exact(-24);
  return float_of(sign | bits_of(magnitude));
}

// Nearest even; any NaN gives 0x7FFF.
QD_HD constexpr uint16_t f16_from_f32(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return 0x7fff;
  if (a >= bits_of(65520.0f)) return static_cast<uint16_t>(sign | 0x7c00u);
  if (a < bits_of(exp2_exact(-14))) {
    // Adding 1/2 puts the unit of the sum at 2^-24, the spacing of half subnormals.
    const float sum = float_of(a) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(sum) - bits_of(0.5f)));
  }
  const uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

}  // namespace quadrille::numerics
