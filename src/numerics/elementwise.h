// SPDX-License-Identifier: Apache-2.0
// The remaining row-wise steps, one element at a time: RMSNorm, rotary pairs, residual sums, the combine chain. `round`
// is round_to_bf16 or the plain value, as the caller's rounding points say (docs/numerics.md sections 4 and 5).
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bf16.h"

namespace quadrille::numerics {

// bf16(x) at a rounding point, or the value itself with its NaN made canonical.
QD_HD constexpr float round_output(float x, bool to_bf16) {
  return to_bf16 ? round_to_bf16(x) : canonical(x);
}

// r = 1 / sqrt(mean + eps), mean = sum of squares / count: IEEE division and square root.
QD_HD float rms_scale(float sum_squares, int64_t count, float eps) {
  return 1.0f / __builtin_sqrtf(sum_squares / static_cast<float>(count) + eps);
}

// round bf16: bf16(bf16(x * r) * weight); round f32: (x * r) * weight.
QD_HD constexpr float rms_norm_value(float x, float r, float weight, bool to_bf16) {
  return round_output((to_bf16 ? round_to_bf16(x * r) : x * r) * weight, to_bf16);
}

// The first value of a rotary pair: a * cos - b * sin; two products, one difference, no fma.
QD_HD constexpr float rope_first(float a, float b, float cos, float sin, bool to_bf16) {
  const float left = a * cos;
  const float right = b * sin;
  return round_output(left - right, to_bf16);
}

// The second value of a rotary pair: b * cos + a * sin.
QD_HD constexpr float rope_second(float a, float b, float cos, float sin, bool to_bf16) {
  const float left = b * cos;
  const float right = a * sin;
  return round_output(left + right, to_bf16);
}

// One step of the combine chain: fmaf(weight, row, acc).
QD_HD float combine_step(float weight, float row, float acc) {
  return __builtin_fmaf(weight, row, acc);
}

}  // namespace quadrille::numerics
