// SPDX-License-Identifier: Apache-2.0
// e8m0 scales (MX formats): a bare exponent, 2^(code - 127), 0xFF is NaN. There is no zero and no sign.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::numerics {

inline constexpr uint8_t kNanE8m0 = 0xff;

// Exact: code 0 is the fp32 subnormal 2^-127, which the plain shift by 23 would miss; 0xFF is NaN and not infinity.
QD_HD constexpr float e8m0_to_f32(uint8_t code) {
  if (code == kNanE8m0) return float_of(kCanonicalNanF32);
  if (code == 0) return float_of(0x00400000u);
  return float_of(static_cast<uint32_t>(code) << 23);
}

// The largest power of two at most x > 0 (`ceil`: the smallest at least x), clamped to 2^-127..2^127; NaN, zero and
// negative values have no code and give 0xFF.
QD_HD constexpr uint8_t e8m0_from_f32(float x, bool ceil) {
  const uint32_t u = bits_of(x);
  if (u == 0 || u > 0x7f800000u) return kNanE8m0;
  if (u < 0x00800000u) {
    // Below 2^-126: codes 0 (2^-127) and 1 (2^-126) are the only ones in reach.
    return static_cast<uint8_t>(ceil && u > 0x00400000u ? 1 : 0);
  }
  const uint32_t code = (u >> 23) + (ceil && (u & 0x7fffffu) != 0 ? 1u : 0u);
  return static_cast<uint8_t>(code > 254 ? 254 : code);
}

}  // namespace quadrille::numerics
