// SPDX-License-Identifier: Apache-2.0
// x / scale for a bf16 x, correctly rounded, from the row's reciprocal: three operations instead of the dozen of a
// division. Used by quantize.cu; gives act_code()'s quotient, not an approximation of it.
#pragma once

#include "core/hostdev.h"

namespace quadrille::kernels::cuda {

// What the quotients of a row need of its scale. Where that is infinite, the reciprocal 0 with any finite divisor gives
// what division gives: NaN for elements that are not finite, zeros for the rest.
struct Divisor {
  float scale;
  float reciprocal;
};
QD_HD constexpr Divisor divisor_of(float scale) {
  const float reciprocal = 1.0f / scale;
  return {reciprocal == 0.0f ? 1.0f : scale, reciprocal};
}

// |x| / scale. magnitude: |x| of a bf16 value, not above the row's maximum (or NaN); d: of that row's act_scale. With
// eight bits in x, one correction of the rounded product reaches the rounded quotient for each of the 2^30 pairs of
// significands (all were compared; tests/device/numerics_test.cpp compares them again). Powers of two change nothing as
// long as `rest` is normal, that is for quotients above 2^-11; below, a few last bits may differ, and the e4m3 code is
// 0 either way.
QD_HD float bf16_quotient(float magnitude, const Divisor& d) {
  const float near = magnitude * d.reciprocal;
  const float rest = __builtin_fmaf(-near, d.scale, magnitude);
  return __builtin_fmaf(rest, d.reciprocal, near);
}

}  // namespace quadrille::kernels::cuda
