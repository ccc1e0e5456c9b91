// SPDX-License-Identifier: Apache-2.0
// sigmoid and silu (docs/numerics.md section 1), one element at a time.
#pragma once

#include "core/hostdev.h"
#include "numerics/bits.h"
#include "numerics/exp.h"

namespace quadrille::numerics {

// 1 / (1 + exp(-x)): one IEEE sum, one IEEE division.
QD_HD float sigmoid(float x) {
  return canonical(1.0f / (1.0f + exp_f32(-x)));
}

// x / (1 + exp(-x)); silu(-Inf) is NaN by this formula.
QD_HD float silu(float x) {
  return canonical(x / (1.0f + exp_f32(-x)));
}

}  // namespace quadrille::numerics
