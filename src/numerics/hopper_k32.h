// SPDX-License-Identifier: Apache-2.0
// What one k32 step of Hopper's e4m3 tensor core computes, to the bit: 32 products and an fp32 accumulator, aligned to
// the largest exponent, truncated, added as integers, truncated to 13 fraction bits. The table `hopper` runs a faster
// form of it (kernels/ref/hopper_step.h) that tests compare with this one.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"
#include "numerics/fp8_e4m3.h"

namespace quadrille::numerics {

inline constexpr int kHopperFractionBits = 13;

// A finite e4m3 byte as significand * 2^(exponent - 3). Not normalised: subnormals keep exponent -6.
QD_HD constexpr int e4m3_significand(uint8_t code) {
  const int field = (code >> 3) & 15;
  const int magnitude = field == 0 ? code & 7 : 8 + (code & 7);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}
QD_HD constexpr int e4m3_exponent(uint8_t code) {
  const int field = (code >> 3) & 15;
  return field == 0 ? -6 : field - 7;
}

// value * 2^-shift, toward zero.
QD_HD constexpr int64_t shift_toward_zero(int64_t value, int shift) {
  if (value == 0) return 0;  // a zero product takes no part in `top`, so its shift may be anything
  if (shift <= 0) return value * (int64_t{1} << -shift);
  if (shift > 62) return 0;
  return value < 0 ? -(-value >> shift) : value >> shift;
}

// sum * 2^exponent as fp32 with 13 fraction bits, toward zero. Sum 0 is +0. Results are normal for all exponents that
// e4m3 products reach; below 2^-126 the value is flushed toward zero by the fp32 grid.
QD_HD constexpr float pack_13_bits(int64_t sum, int exponent) {
  if (sum == 0) return 0.0f;
  uint64_t a = sum < 0 ? static_cast<uint64_t>(-sum) : static_cast<uint64_t>(sum);
  int top = 63;
  while ((a >> top) == 0) --top;
  if (top > kHopperFractionBits) a = a >> (top - kHopperFractionBits) << (top - kHopperFractionBits);
  const uint32_t sign = sum < 0 ? 0x80000000u : 0u;
  const int biased = top + exponent + 127;
  if (biased >= 255) return float_of(sign | 0x7f800000u);
  const uint64_t mantissa = top > 23 ? a >> (top - 23) : a << (23 - top);
  if (biased <= 0) {
    const int drop = 1 - biased;
    return float_of(sign | (drop > 23 ? 0u : static_cast<uint32_t>(mantissa >> drop)));
  }
  return float_of(sign | static_cast<uint32_t>(biased) << 23 | (static_cast<uint32_t>(mantissa) & 0x7fffffu));
}

// One step: a[32], b[32] e4m3 codes, c the accumulator. Any NaN operand gives the canonical NaN, also beside a zero;
// an infinite c without NaN stays; nothing non-zero gives +0 (so c = -0 becomes +0).
QD_HD constexpr float hopper_k32(const uint8_t* a, const uint8_t* b, float c) {
  constexpr int kNone = -1000;
  const uint32_t bits = bits_of(c);
  bool nan = is_nan(c);
  int top = kNone;
  for (int i = 0; i < 32; ++i) {
    nan = nan || e4m3_is_nan(a[i]) || e4m3_is_nan(b[i]);
    if (e4m3_significand(a[i]) * e4m3_significand(b[i]) == 0) continue;
    const int exponent = e4m3_exponent(a[i]) + e4m3_exponent(b[i]);
    top = exponent > top ? exponent : top;
  }
  if (nan) return float_of(kCanonicalNanF32);
  if ((bits & 0x7fffffffu) == 0x7f800000u) return c;
  const int field = static_cast<int>(bits >> 23 & 255u);
  const int c_exponent = field != 0 ? field - 127 : -126;
  int64_t significand = static_cast<int64_t>(bits & 0x7fffffu) | (field != 0 ? 0x800000 : 0);
  if (significand != 0 && c_exponent > top) top = c_exponent;
  if (top == kNone) return 0.0f;
  if ((bits >> 31) != 0) significand = -significand;
  int64_t sum = shift_toward_zero(significand, top - c_exponent + 23 - kHopperFractionBits);
  for (int i = 0; i < 32; ++i) {
    const int exponent = e4m3_exponent(a[i]) + e4m3_exponent(b[i]);
    sum += shift_toward_zero(e4m3_significand(a[i]) * e4m3_significand(b[i]), top - exponent + 6 - kHopperFractionBits);
  }
  return pack_13_bits(sum, top - kHopperFractionBits);
}

// A chain of `steps` k32 steps over a[32 * steps], b[32 * steps], from accumulator c (+0 at the start of a chain).
QD_HD constexpr float hopper_chain(const uint8_t* a, const uint8_t* b, int64_t steps, float c) {
  for (int64_t s = 0; s < steps; ++s) c = hopper_k32(a + 32 * s, b + 32 * s, c);
  return c;
}

// The weight operand of `exact`: byte s000mmmm, the code of q * 2^-9 (|q| as significand, sign in bit 7).
QD_HD constexpr uint8_t exact_weight_code(int q) {
  return static_cast<uint8_t>(q < 0 ? 0x80 | -q : q);
}

}  // namespace quadrille::numerics
