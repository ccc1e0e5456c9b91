// SPDX-License-Identifier: Apache-2.0
// e5m2 codes <-> fp32: nearest even; overflow saturates at +-57344 or goes to infinity, as the caller says.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"
#include "numerics/fp16.h"

namespace quadrille::numerics {

inline constexpr uint8_t kCanonicalNanE5m2 = 0x7f;

// Exact: an e5m2 code is the upper byte of a half.
QD_HD constexpr float e5m2_to_f32(uint8_t code) {
  return f16_to_f32(static_cast<uint16_t>(code << 8));
}

// Nearest even. `saturate`: finite values and infinities beyond 57344 give +-57344; otherwise from 61440 on +-Inf.
QD_HD constexpr uint8_t e5m2_from_f32(float x, bool saturate) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 24) & 0x80u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return kCanonicalNanE5m2;
  if (saturate && a >= bits_of(57344.0f)) return static_cast<uint8_t>(sign | 0x7bu);
  if (a >= bits_of(61440.0f)) return static_cast<uint8_t>(sign | 0x7cu);
  if (a < bits_of(exp2_exact(-14))) {
    // Adding 128 puts the unit of the sum at 2^-16, the spacing of e5m2 subnormals.
    const float sum = float_of(a) + 128.0f;
    return static_cast<uint8_t>(sign | (bits_of(sum) - bits_of(128.0f)));
  }
  const uint32_t rounded = a + 0xfffffu + ((a >> 21) & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 21) - (112u << 2)));
}

}  // namespace quadrille::numerics
