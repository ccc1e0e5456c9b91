// SPDX-License-Identifier: Apache-2.0
// Activation quantisation (docs/numerics.md section 2): one scale a row, e4m3 codes, IEEE divisions.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/fp8_e4m3.h"

namespace quadrille::numerics {

// The floor of activation and channel scales: 1 / (448 * 512), rounded to fp32 (0x36924925, 4.3596542e-06).
inline constexpr float kScaleFloor = 1.0f / (448.0f * 512.0f);

// One step of absmax from +0: NaN is ignored (SSE form: max_ps(|x|, m) returns m where x is NaN).
QD_HD constexpr float absmax_step(float m, float x) {
  const float a = abs_f32(x);
  return a > m ? a : m;
}

// sa = max(absmax / 448, floor).
QD_HD constexpr float act_scale_of_absmax(float absmax) {
  const float scale = absmax / kE4m3Max;
  return scale > kScaleFloor ? scale : kScaleFloor;
}

// E4(x / sa). Inf / Inf is NaN: an infinite element has code 0x7F, its finite neighbours are zero.
QD_HD constexpr uint8_t act_code(float x, float scale) {
  return e4m3_from_f32(x / scale);
}

}  // namespace quadrille::numerics
