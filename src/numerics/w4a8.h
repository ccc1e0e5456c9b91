// SPDX-License-Identifier: Apache-2.0
// The scalar rules of the W4A8 product in the CPU order (docs/numerics.md section 3): one k32 step, the group chain,
// the result. Tables transcribe them lane by lane; tests compare with these functions.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bf16.h"

namespace quadrille::numerics {

inline constexpr int kStep = 32;           // positions of a k32 step
inline constexpr int kChannelPiece = 128;  // one scale a channel: pieces of this length with equal scales
// The weight operand of `exact` is the byte of q * 2^-9; a table that counts in q multiplies the group scale instead.
inline constexpr float kExactUnit = 0x1p-9f;

// Positions that share an accumulator in `exact`: the group, or 128 for one scale a channel (group_size 0).
QD_HD constexpr int64_t piece_size(int64_t group_size) {
  return group_size == 0 ? kChannelPiece : group_size;
}

// s_g * 2^-9: exact for every bf16 scale, also where the result is subnormal in fp32.
QD_HD constexpr float exact_group_scale(uint16_t scale_bf16) {
  return bf16_to_f32(scale_bf16) * kExactUnit;
}

// One k32 step in the CPU order: e and o are fma chains from +0 over the even and odd positions, then acc + (e + o).
// a[32], w[32]: activation and weight values (weights in q for `exact`, decoded e4m3 for `vllm`).
QD_HD float cpu_k32(const float* a, const float* w, float acc) {
  float even = 0.0f;
  float odd = 0.0f;
  for (int i = 0; i < kStep; i += 2) {
    even = __builtin_fmaf(a[i], w[i], even);
    odd = __builtin_fmaf(a[i + 1], w[i + 1], odd);
  }
  return acc + (even + odd);
}

// `exact`: final = fmaf(s_g * 2^-9, acc in q, final), groups ascending from +0.
QD_HD float exact_group(float scaled_group_scale, float acc, float total) {
  return __builtin_fmaf(scaled_group_scale, acc, total);
}

// `exact`: y = final * (sa * 512).
QD_HD constexpr float exact_result(float total, float act_scale) {
  return canonical(total * (act_scale * 512.0f));
}

// `block`: final = fmaf(s_g, sa_b * acc, final) with the scale of the 128 columns that the piece lies in, y = final *
// 512. `acc` is in units of q * 2^-9 (kExactUnit times a sum in q, which is exact); the product with sa_b is rounded.
QD_HD float block_group(float group_scale, float block_scale, float acc, float total) {
  return __builtin_fmaf(group_scale, block_scale * acc, total);
}
QD_HD constexpr float block_result(float total) {
  return canonical(total * 512.0f);
}

// `vllm`: y = chan8 * (sa * acc).
QD_HD constexpr float vllm_result(float channel_scale8, float act_scale, float acc) {
  return canonical(channel_scale8 * (act_scale * acc));
}

}  // namespace quadrille::numerics
