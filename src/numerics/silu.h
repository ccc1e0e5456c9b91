// SPDX-License-Identifier: Apache-2.0
// sigmoid, silu and the gated activation with its rounding points (docs/numerics.md section 4), one element at a time.
#pragma once

#include "core/hostdev.h"
#include "numerics/bf16.h"
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

// round f32, both numerics: silu(gate) * up.
QD_HD float gated_silu_f32(float gate, float up) {
  return canonical(silu(gate) * up);
}

// round bf16, `exact`: bf16(silu(gate) * up), gate and up in fp32.
QD_HD float gated_silu_exact(float gate, float up) {
  return round_to_bf16(silu(gate) * up);
}

// round bf16, `vllm`: bf16(bf16(silu(bf16(gate))) * bf16(up)).
QD_HD float gated_silu_vllm(float gate, float up) {
  return round_to_bf16(round_to_bf16(silu(round_to_bf16(gate))) * round_to_bf16(up));
}

}  // namespace quadrille::numerics
