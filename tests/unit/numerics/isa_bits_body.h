// SPDX-License-Identifier: Apache-2.0
// The body of isa_bits.h; the including unit names it with QD_ISA_FUNCTION. No standard containers: the unit may be
// built for a wider instruction set than the machine has.
#include "isa_bits.h"
#include "numerics/act_quant.h"
#include "numerics/activation.h"
#include "numerics/e2m1.h"
#include "numerics/e8m0.h"
#include "numerics/elementwise.h"
#include "numerics/fp16.h"
#include "numerics/fp8_e5m2.h"
#include "numerics/group_scale.h"
#include "numerics/hopper_k32.h"
#include "numerics/lane_sum.h"
#include "numerics/w4a8.h"

namespace quadrille::isa_bits {

void QD_ISA_FUNCTION(const float* inputs, int count, uint32_t* out) {
  using namespace quadrille::numerics;  // NOLINT
  for (int i = 0; i + 64 <= count; ++i) {
    const float x = inputs[i];
    const float y = inputs[i + 1];
    uint32_t* r = out + i * kResults;
    uint8_t a[32], b[32];
    uint16_t w[64];
    for (int j = 0; j < 32; ++j) a[j] = e4m3_from_f32(inputs[i + j]);
    for (int j = 0; j < 32; ++j) b[j] = e4m3_from_f32(inputs[i + 32 + j]);
    for (int j = 0; j < 64; ++j) w[j] = bf16_from_f32(inputs[i + j]);
    r[0] = bf16_from_f32(x);
    r[1] = f16_from_f32(x);
    r[2] = e4m3_from_f32(x);
    r[3] = e5m2_from_f32(x, true) | static_cast<uint32_t>(e2m1_from_f32(x)) << 8 |
           static_cast<uint32_t>(e8m0_from_f32(x, true)) << 16;
    r[4] = bits_of(exp_f32(x));
    r[5] = bits_of(silu(x));
    r[6] = bits_of(sigmoid(x));
    const ActivationRule rules[4] = {
        {}, {.kind = Activation::kClampedSwiglu}, {.kind = Activation::kGeluTanh}, {.kind = Activation::kRelu2}};
    for (int kind = 0; kind < 4; ++kind) {
      const ActivationRule& rule = rules[kind];
      r[20 + 2 * kind] = bits_of(activation_f32(rule, x, y));
      r[21 + 2 * kind] = bits_of(activation_exact(rule, x, y)) ^ bits_of(activation_vllm(rule, x, y)) << 8;
    }
    r[7] = bits_of(canonical(block_group(x, y, inputs[i + 2], 0.7f)));
    r[8] = bits_of(block_result(x));
    r[9] = bits_of(canonical(lane_sum(inputs + i, 50)));
    r[10] = bits_of(canonical(lane_dot_bf16(inputs + i, w, 64)));
    r[11] = bits_of(canonical(lane_sum_squares(inputs + i, 61)));
    r[12] = bits_of(act_scale_of_absmax(absmax_step(0.0f, x)));
    r[13] = act_code(y, act_scale_of_absmax(absmax_step(0.0f, x)));
    r[14] = bits_of(canonical(rms_scale(abs_f32(x), 64, 1e-6f)));
    r[15] = bits_of(rope_first(x, y, 0.3f, 0.9f, false)) ^ bits_of(rope_second(x, y, 0.3f, 0.9f, true)) << 4;
    r[16] = bits_of(canonical(cpu_k32(inputs + i, inputs + i + 32, y)));
    r[17] = bits_of(hopper_k32(a, b, 0.0f));
    r[18] = bits_of(exact_result(x, y)) ^ bits_of(vllm_result(x, y, 0.7f)) << 3;
    r[19] = vllm_weight_code(a[0], 5) | static_cast<uint32_t>(group_scale8_code(a[1])) << 8;
  }
}

}  // namespace quadrille::isa_bits
