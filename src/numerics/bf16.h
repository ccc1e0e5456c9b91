// SPDX-License-Identifier: Apache-2.0
// bfloat16 <-> fp32: nearest even, overflow to infinity, subnormals kept, NaN canonical (0x7FFF).
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::numerics {

inline constexpr uint16_t kCanonicalNanBf16 = 0x7fff;

// Exact.
QD_HD constexpr float bf16_to_f32(uint16_t code) {
  return float_of(static_cast<uint32_t>(code) << 16);
}

// Nearest even; any NaN gives 0x7FFF.
QD_HD constexpr uint16_t bf16_from_f32(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return kCanonicalNanBf16;
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// bf16(x) of the contract, widened again: what a rounding point does to a value that stays in fp32. NaN gives the bits
// 0x7FFF0000.
QD_HD constexpr float round_to_bf16(float x) {
  return bf16_to_f32(bf16_from_f32(x));
}

}  // namespace quadrille::numerics
