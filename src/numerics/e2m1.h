// SPDX-License-Identifier: Apache-2.0
// e2m1 (FP4) codes <-> fp32: values 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives; nearest even, saturating at +-6.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::numerics {

// Exact; only the low four bits of `code` count.
QD_HD constexpr float e2m1_to_f32(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 8u) << 28;
  const uint32_t a = code & 7u;
  if (a < 2) return float_of(sign | (a == 0 ? 0u : bits_of(0.5f)));
  return float_of(sign | ((a << 22) + (126u << 23)));
}

// Nearest even, ties to the even code. The format has no NaN: NaN gives the largest value, as the hardware does.
QD_HD constexpr uint8_t e2m1_from_f32(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return 7;
  const uint32_t sign = (u >> 28) & 8u;
  const float v = float_of(a);
  uint32_t code = 7;
  if (v <= 0.25f) {
    code = 0;
  } else if (v < 0.75f) {
    code = 1;
  } else if (v <= 1.25f) {
    code = 2;
  } else if (v < 1.75f) {
    code = 3;
  } else if (v <= 2.5f) {
    code = 4;
  } else if (v < 3.5f) {
    code = 5;
  } else if (v <= 5.0f) {
    code = 6;
  }
  return static_cast<uint8_t>(sign | code);
}

}  // namespace quadrille::numerics
