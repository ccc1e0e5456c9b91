// SPDX-License-Identifier: Apache-2.0
// The scale split of the `vllm` numerics: a row's bf16 group scales -> one fp32 channel scale and e4m3 group scales
// divided by 8, and the weight byte E4(s8 * q) with its table of eight negative multiples.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/act_quant.h"
#include "numerics/fp8_e4m3.h"

namespace quadrille::numerics {

// ch = max(absmax / 448, floor), absmax over the |scales| of the whole row.
QD_HD constexpr float channel_scale_of_absmax(float absmax) {
  return act_scale_of_absmax(absmax);
}

// c = E4(s / ch).
QD_HD constexpr uint8_t group_scale_code(float scale, float channel_scale) {
  return e4m3_from_f32(scale / channel_scale);
}

// s8 = E4(c / 8): a second rounding where c / 8 is subnormal in e4m3. The divisor 8 makes -8 * s8 reach 448, not more.
QD_HD constexpr uint8_t group_scale8_code(uint8_t code) {
  return e4m3_from_f32(e4m3_to_f32(code) / 8.0f);
}

// chan8 = 8 * ch, exact.
QD_HD constexpr float channel_scale8(float channel_scale) {
  return channel_scale * 8.0f;
}

// Entry i = 0..7 of the table: E4(s8 * (i - 8)).
QD_HD constexpr uint8_t lut_code(uint8_t scale8_code, int index) {
  return e4m3_from_f32(e4m3_to_f32(scale8_code) * static_cast<float>(index - 8));
}

// The weight operand E4(s8 * q); 0x00 for q = 0 (the table's own byte there is 0x80, the same number to a product).
QD_HD constexpr uint8_t vllm_weight_code(uint8_t scale8_code, int q) {
  if (q == 0 && !e4m3_is_nan(scale8_code)) return 0;
  return e4m3_from_f32(e4m3_to_f32(scale8_code) * static_cast<float>(q));
}

}  // namespace quadrille::numerics
