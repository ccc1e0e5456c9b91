// SPDX-License-Identifier: Apache-2.0
// The activations between the two products of an expert, with their rounding points (docs/numerics.md section 4), one
// element at a time. Every backend calls these or transcribes them.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bf16.h"
#include "numerics/exp.h"
#include "numerics/silu.h"

namespace quadrille::numerics {

enum class Activation : int32_t {
  kSilu,           // silu(gate) * up
  kClampedSwiglu,  // gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit): (u + up_offset) * (g * sigmoid(alpha
                   // g))
  kGeluTanh,       // gelu(gate) * up with the tanh form of gelu: x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3)))
  kRelu2,          // not gated: max(x, 0)^2
};

struct ActivationRule {
  Activation kind = Activation::kSilu;
  float alpha = 1.702f;    // kClampedSwiglu
  float limit = 7.0f;      // kClampedSwiglu; infinity: no clamp
  float up_offset = 1.0f;  // kClampedSwiglu

  QD_HD constexpr bool gated() const { return kind != Activation::kRelu2; }
};

inline constexpr float kGeluCubic = 0.044715f;
inline constexpr float kGeluSlope = -0x1.988454p+0f;  // -2 * sqrt(2 / pi), rounded to fp32

// min(x, high) and max(x, low) that let NaN pass.
QD_HD constexpr float clamp_high(float x, float high) {
  return high < x ? high : x;
}
QD_HD constexpr float clamp_low(float x, float low) {
  return x < low ? low : x;
}

// x / (1 + exp(slope * (x + 0.044715 x^3))); the cube is (x * x) * x, the sum one fma.
QD_HD float gelu_tanh(float x) {
  const float cube = (x * x) * x;
  return canonical(x / (1.0f + exp_f32(kGeluSlope * __builtin_fmaf(kGeluCubic, cube, x))));
}

// g * sigmoid(alpha * g), the gate half of kClampedSwiglu, after the clamp.
QD_HD float swish_alpha(float gate, float alpha) {
  return canonical(gate * sigmoid(alpha * gate));
}

// What stands between two rounding points of `vllm`: the gate half alone.
QD_HD float activated_gate(const ActivationRule& rule, float gate) {
  switch (rule.kind) {
    case Activation::kClampedSwiglu:
      return swish_alpha(clamp_high(gate, rule.limit), rule.alpha);
    case Activation::kGeluTanh:
      return gelu_tanh(gate);
    default:
      return silu(gate);
  }
}
QD_HD float activated_up(const ActivationRule& rule, float up) {
  if (rule.kind != Activation::kClampedSwiglu) return up;
  return clamp_low(clamp_high(up, rule.limit), -rule.limit) + rule.up_offset;
}
QD_HD constexpr float relu2(float x) {
  const float r = clamp_low(x, 0.0f);
  return r * r;
}

// round f32: h without a rounding point. `up` is not read where the rule is not gated.
QD_HD float activation_f32(const ActivationRule& rule, float gate, float up) {
  if (!rule.gated()) return canonical(relu2(gate));
  return canonical(activated_gate(rule, gate) * activated_up(rule, up));
}
// round bf16, `exact`: one rounding at the end, gate and up in fp32.
QD_HD float activation_exact(const ActivationRule& rule, float gate, float up) {
  return round_to_bf16(activation_f32(rule, gate, up));
}
// round bf16, `vllm`: gate, up, the activated gate and the product are rounded each.
QD_HD float activation_vllm(const ActivationRule& rule, float gate, float up) {
  const float g = round_to_bf16(gate);
  if (!rule.gated()) return round_to_bf16(relu2(g));
  const float half = round_to_bf16(activated_gate(rule, g));
  return round_to_bf16(half * activated_up(rule, round_to_bf16(up)));
}

}  // namespace quadrille::numerics
