// SPDX-License-Identifier: Apache-2.0
// x / scale for a bf16 x, correctly rounded, from the row's reciprocal: three operations instead of the dozen of a
// division. Used by quantize.cu; gives act_code()'s quotient, not an approximation of it.
#pragma once

#include "core/hostdev.h"

namespace quadrille::kernels::cuda {

// magnitude: |x| of a bf16 value, finite; scale: at least the floor of activation scales, finite; reciprocal: 1 /
// scale, rounded. With eight bits in x, one correction of the rounded product reaches the rounded quotient for each of
// the 2^30 pairs of significands (all were compared; tests/device/numerics_test.cu compares them again). Powers of two
// change nothing as long as `rest` is normal, that is for quotients above 2^-11; below, a few last bits may differ, and
// the e4m3 code is 0 either way.
QD_HD float bf16_quotient(float magnitude, float scale, float reciprocal) {
  const float near = magnitude * reciprocal;
  const float rest = __builtin_fmaf(-near, scale, magnitude);
  return __builtin_fmaf(rest, reciprocal, near);
}

}  // namespace quadrille::kernels::cuda
