// SPDX-License-Identifier: Apache-2.0
// exp of the contract: the same bits on every backend, at most 1 ulp off over all of fp32 (tests/unit/numerics proves
// it for every argument). A SIMD transcription makes the same operations in the same order; each step names its form.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::numerics {

// Clamps: exp(89) overflows to +Inf and exp(-104) rounds to +0, as do all values outside.
inline constexpr float kExpHigh = 89.0f;
inline constexpr float kExpLow = -104.0f;
inline constexpr float kLog2E = 0x1.715476p+0f;
// ln 2 = high + low. fma(n, -high, x) is exact for every n in use, because x - n * high is a multiple of 2^-25 below
// 1/2.
inline constexpr float kLn2High = 0x1.62e430p-1f;
inline constexpr float kLn2Low = -0x1.05c610p-29f;
// 1.5 * 2^23: adding it rounds to an integer (nearest even) in the low bits of the sum.
inline constexpr float kRoundMagic = 12582912.0f;
// exp(r) = 1 + r + r^2 * (c2 + c3 r + ... + c7 r^5) on |r| <= ln(2)/2.
inline constexpr float kExpC2 = 0x1.000000p-1f;
inline constexpr float kExpC3 = 0x1.555556p-3f;
inline constexpr float kExpC4 = 0x1.555470p-5f;
inline constexpr float kExpC5 = 0x1.1110acp-7f;
inline constexpr float kExpC6 = 0x1.6da796p-10f;
inline constexpr float kExpC7 = 0x1.a17e2cp-13f;

// 1. x < low ? low : x, then high < x ? high : x. NaN passes through both (SSE form: max_ps(low, x), min_ps(high, x)
//    with x as the SECOND operand).
// 2. t = fma(x, log2e, magic); n = t - magic. The integer n is bits(t) - bits(magic), in int32.
// 3. r = fma(n, -ln2_high, x); r = fma(n, -ln2_low, r).
// 4. p = c7; then six steps p = fma(p, r, c) with c = c6, c5, c4, c3, c2, 1; then p = fma(p, r, 1).
// 5. n1 = n >> 1 (arithmetic), n2 = n - n1; the result is (p * 2^n1) * 2^n2 with 2^e = bits((e + 127) << 23). The first
//    product is exact, so a subnormal result is rounded once.
// 6. NaN argument: the canonical NaN (blend with x != x).
QD_HD float exp_f32(float x) {
  float v = kExpLow > x ? kExpLow : x;
  v = kExpHigh < v ? kExpHigh : v;
  const float t = __builtin_fmaf(v, kLog2E, kRoundMagic);
  const float n = t - kRoundMagic;
  float r = __builtin_fmaf(n, -kLn2High, v);
  r = __builtin_fmaf(n, -kLn2Low, r);
  float p = kExpC7;
  p = __builtin_fmaf(p, r, kExpC6);
  p = __builtin_fmaf(p, r, kExpC5);
  p = __builtin_fmaf(p, r, kExpC4);
  p = __builtin_fmaf(p, r, kExpC3);
  p = __builtin_fmaf(p, r, kExpC2);
  p = __builtin_fmaf(p, r, 1.0f);
  p = __builtin_fmaf(p, r, 1.0f);
  if (is_nan(x)) return float_of(kCanonicalNanF32);
  const int32_t whole = static_cast<int32_t>(bits_of(t) - bits_of(kRoundMagic));
  const int32_t first = whole >> 1;
  return (p * exp2_exact(first)) * exp2_exact(whole - first);
}

}  // namespace quadrille::numerics
