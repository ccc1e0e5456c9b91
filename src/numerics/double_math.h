// SPDX-License-Identifier: Apache-2.0
// exp and log in double from additions, multiplications and divisions alone, so that a draw and a log-probability have
// the same bits on every machine. The C library's own differ between its versions and between CPUs with and without
// fma.
#pragma once

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::numerics {

// e^x for x <= 0, 0 below -708 (where the result would be subnormal); relative error below 2^-51. exp(0) is exactly 1.
// x = k ln 2 + r with |r| <= ln 2 / 2; the Taylor polynomial of degree 13 leaves r^14 / 14! < 5e-18.
QD_HD double reproducible_exp(double x) {
  if (x < -708.0) return 0.0;
  constexpr double kLog2EWide = 1.4426950408889634;
  constexpr double kLn2HighWide = 6.93147180369123816490e-01;  // 32 bits: k * kLn2HighWide is exact
  constexpr double kLn2LowWide = 1.90821492927058770002e-10;
  const auto k = static_cast<int64_t>(x * kLog2EWide - 0.5);  // towards zero: the nearest integer for x <= 0
  const double r = (x - static_cast<double>(k) * kLn2HighWide) - static_cast<double>(k) * kLn2LowWide;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * __builtin_bit_cast(double, static_cast<uint64_t>(k + 1023) << 52);
}

// ln x for finite, normal x > 0; error below 2^-51 of max(1, |ln x|).
// x = 2^k m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716.
QD_HD double reproducible_log(double x) {
  constexpr double kLn2HighWide = 6.93147180369123816490e-01;
  constexpr double kLn2LowWide = 1.90821492927058770002e-10;
  const auto bits = __builtin_bit_cast(uint64_t, x);
  int exponent = static_cast<int>(bits >> 52) - 1022;
  double m = __builtin_bit_cast(double, (bits & 0xfffffffffffffull) | uint64_t{1022} << 52);  // in [0.5, 1)
  if (m < 0.70710678118654752440) {
    m *= 2;
    exponent -= 1;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double series = 0;
  for (int n = 25; n >= 3; n -= 2) series = (series + 1.0 / n) * square;
  const double mantissa = 2.0 * (s + s * series);
  return exponent * kLn2HighWide + (mantissa + exponent * kLn2LowWide);
}

}  // namespace quadrille::numerics
