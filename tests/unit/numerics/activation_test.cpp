// SPDX-License-Identifier: Apache-2.0
// Every activation against its formula in double, within bounds that follow from the roundings on the way; its rounding
// points; the ends of the number line; and that silu is what it was before it had company.
#include "numerics/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace quadrille::numerics {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kUnit = 0x1p-24;  // relative error of one fp32 rounding
constexpr Activation kKinds[] = {Activation::kSilu, Activation::kClampedSwiglu, Activation::kGeluTanh,
                                 Activation::kRelu2};

// A value in double, how many roundings of relative size kUnit it met (first order), and what an overflow of the
// exponential or a subnormal step may have cost.
struct Bounded {
  double value;
  double units;
  double lost;
};

double slack(const Bounded& b) {
  // Second-order terms: (1 + u)^n - 1 < n u / (1 - n u).
  return std::fabs(b.value) * b.units * kUnit / (1.0 - b.units * kUnit) + b.lost;
}

// x * 1 / (1 + exp(-z)) where z carries `units_of_z`: exp is within 1 ulp (2 units) and turns a relative error of z
// into |z| times as much; the sum and the quotient are rounded once each. Where exp overflows, |x| 2^-128 is lost.
Bounded over_one_plus_exp(double x, double z, double units_of_z) {
  const double e = std::exp(-z);
  const double of_exp = (2.0 + std::fabs(z) * units_of_z) * (std::isinf(e) ? 1.0 : e / (1.0 + e));
  return {x / (1.0 + e), of_exp + 2.0, std::fabs(x) * (z < -88.0 ? 0x1p-126 : 0.0) + 0x1p-149};
}

double clamp(double x, double low, double high) {
  return std::fmin(std::fmax(x, low), high);
}

Bounded gate_half(const ActivationRule& rule, double gate) {
  switch (rule.kind) {
    case Activation::kClampedSwiglu: {
      const double g = std::fmin(gate, rule.limit);
      Bounded half = over_one_plus_exp(g, double{rule.alpha} * g, 1.0);  // alpha * g is rounded
      half.units += 1.0;                                                 // g * sigmoid, which was the quotient
      return half;
    }
    case Activation::kGeluTanh: {
      // The cube: 2 roundings, its factor 1, the fma 1; the slope 1 and its product 1.
      const double z = 2.0 * std::sqrt(2.0 / M_PI) * (gate + 0.044715 * gate * gate * gate);
      return over_one_plus_exp(gate, z, 6.0);
    }
    default:
      return over_one_plus_exp(gate, gate, 0.0);
  }
}

double up_half(const ActivationRule& rule, double up) {
  if (rule.kind != Activation::kClampedSwiglu) return up;
  return clamp(up, -double{rule.limit}, rule.limit) + double{rule.up_offset};
}

Bounded formula(const ActivationRule& rule, double gate, double up) {
  if (!rule.gated()) return {gate > 0 ? gate * gate : 0.0, 1.0, 0x1p-149};
  const Bounded half = gate_half(rule, gate);
  const double u = up_half(rule, up);
  // up + offset and the product are rounded once each; an absolute loss is multiplied by |up|.
  return {half.value * u, half.units + 2.0, (half.lost + 0x1p-149) * (std::fabs(u) + 1.0)};
}

std::vector<float> gates() {
  std::vector<float> x;
  for (float v = -120.0f; v < 120.0f; v += 0.37f) x.push_back(v);
  for (float v = 1e-30f; v < 1e4f; v *= 7.3f) x.insert(x.end(), {v, -v});
  for (const float edge : {6.9999995f, 7.0f, 7.0000005f, 0.0f, -0.0f, -88.8f, -52.2f}) x.push_back(edge);
  return x;
}

constexpr float kUps[] = {0.0f, 1.0f, -1.0f, 0.98765432f, -3.3333333f, 6.9999995f, 7.5f, -7.0000005f, -100.0f, 1e-20f};

TEST(Activation, WithinTheRoundingsOfItsFormula) {
  for (const Activation kind : kKinds) {
    for (const float limit : {7.0f, kInfinity}) {
      const ActivationRule rule{.kind = kind, .limit = limit};
      for (const float gate : gates()) {
        for (const float up : kUps) {
          const Bounded truth = formula(rule, gate, up);
          ASSERT_LE(std::fabs(activation_f32(rule, gate, up) - truth.value), slack(truth))
              << "kind " << static_cast<int>(kind) << " gate " << gate << " up " << up;
          // One rounding to bf16 more: at most 2^-8 of the value, or half of the last subnormal step.
          const float rounded = activation_exact(rule, gate, up);
          ASSERT_EQ(bits_of(rounded) & 0xffffu, 0u);
          ASSERT_LE(std::fabs(rounded - truth.value),
                    slack(truth) + (std::fabs(truth.value) + slack(truth)) * 0x1p-8 + 0x1p-134);
        }
      }
    }
  }
}

// The bound sees a wrong constant: alpha, limit, the factor of the cube, the offset.
TEST(Activation, TheBoundIsSharp) {
  const ActivationRule rule{.kind = Activation::kClampedSwiglu};
  for (ActivationRule wrong :
       {ActivationRule{.kind = rule.kind, .alpha = 1.7019f}, ActivationRule{.kind = rule.kind, .limit = 7.001f},
        ActivationRule{.kind = rule.kind, .up_offset = 1.0001f}}) {
    int outside = 0;
    for (const float gate : gates()) {
      const Bounded truth = formula(rule, gate, 0.98765432f);
      outside += std::fabs(activation_f32(wrong, gate, 0.98765432f) - truth.value) > slack(truth) ? 1 : 0;
    }
    EXPECT_GT(outside, 20);
  }
}

// x / (1 + exp(-2 t)) is the tanh form of gelu, 0.5 x (1 + tanh(t)): the two agree where double does not cancel.
TEST(Activation, GeluIsTheTanhForm) {
  EXPECT_EQ(kGeluSlope, static_cast<float>(-2.0 * std::sqrt(2.0 / M_PI)));
  const ActivationRule rule{.kind = Activation::kGeluTanh};
  for (double x = -3.0; x < 6.0; x += 0.01) {
    const double t = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
    EXPECT_NEAR(gate_half(rule, x).value, 0.5 * x * (1.0 + std::tanh(t)), 1e-14);
  }
}

// `vllm` rounds gate, up, the activated gate and the product. The activated gate lies within its bound of the formula,
// so the result lies between what the two ends of the bound round to, and for nearly all values these are one.
TEST(Activation, VllmRoundsFourTimes) {
  int decided = 0, all = 0;
  for (const Activation kind : {Activation::kSilu, Activation::kClampedSwiglu, Activation::kGeluTanh}) {
    const ActivationRule rule{.kind = kind};
    for (const float gate : gates()) {
      for (const float up : kUps) {
        const Bounded half = gate_half(rule, round_to_bf16(gate));
        const auto u = static_cast<float>(up_half(rule, round_to_bf16(up)));
        const auto of = [&](double value) {
          return round_to_bf16(static_cast<float>(double{round_to_bf16(static_cast<float>(value))} * double{u}));
        };
        const float low = of(half.value - slack(half)), high = of(half.value + slack(half));
        const float found = activation_vllm(rule, gate, up);
        ASSERT_TRUE(std::fmin(low, high) <= found && found <= std::fmax(low, high))
            << static_cast<int>(kind) << " " << gate << " " << up;
        if (std::fabs(half.value) < 0x1p-100) continue;  // where the exponential overflows the bound is wide
        ++all;
        decided += low == high ? 1 : 0;
      }
    }
  }
  EXPECT_GT(decided, all * 9 / 10);
  const ActivationRule relu{.kind = Activation::kRelu2};
  for (const float gate : gates()) {
    const double g = round_to_bf16(gate);
    EXPECT_EQ(activation_vllm(relu, gate, 0.0f), round_to_bf16(static_cast<float>(g > 0 ? g * g : 0.0)));
  }
}

// Values at which one rounding point more or less shows.
TEST(Activation, RoundingPointsShow) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  for (const Activation kind : kKinds) {
    const ActivationRule rule{.kind = kind};
    int exact_is_not_f32 = 0, vllm_is_not_exact = 0;
    for (int i = 0; i < 1000; ++i) {
      const float gate = normal(random), up = normal(random);
      exact_is_not_f32 += activation_exact(rule, gate, up) != activation_f32(rule, gate, up) ? 1 : 0;
      vllm_is_not_exact += activation_vllm(rule, gate, up) != activation_exact(rule, gate, up) ? 1 : 0;
      ASSERT_EQ(bits_of(activation_exact(rule, gate, up)), bits_of(round_to_bf16(activation_f32(rule, gate, up))));
    }
    EXPECT_GT(exact_is_not_f32, 300) << static_cast<int>(kind);
    EXPECT_GT(vllm_is_not_exact, 100) << static_cast<int>(kind);
  }
}

// The formulas that stood here before the rule: the silu of the rule has their bits.
TEST(Activation, SiluIsUnchanged) {
  const ActivationRule rule;
  ASSERT_EQ(rule.kind, Activation::kSilu);
  std::mt19937 random(6);
  for (int i = 0; i < 200000; ++i) {
    const float gate = float_of(static_cast<uint32_t>(random())), up = float_of(static_cast<uint32_t>(random()));
    ASSERT_EQ(bits_of(activation_f32(rule, gate, up)), bits_of(canonical(silu(gate) * up)));
    ASSERT_EQ(bits_of(activation_exact(rule, gate, up)), bits_of(round_to_bf16(silu(gate) * up)));
    ASSERT_EQ(bits_of(activation_vllm(rule, gate, up)),
              bits_of(round_to_bf16(round_to_bf16(silu(round_to_bf16(gate))) * round_to_bf16(up))));
  }
}

TEST(Activation, ClampEdges) {
  const ActivationRule rule{.kind = Activation::kClampedSwiglu};
  const auto at = [&](float gate, float up) { return activation_f32(rule, gate, up); };
  // gate is cut above only, up on both sides.
  EXPECT_EQ(at(7.0f, 2.0f), at(1e30f, 2.0f));
  EXPECT_EQ(at(7.0f, 2.0f), at(kInfinity, 2.0f));
  EXPECT_LT(at(6.999f, 2.0f), at(7.0f, 2.0f));
  EXPECT_NE(at(-7.0f, 2.0f), at(-8.0f, 2.0f));
  EXPECT_EQ(at(1.0f, 7.0f), at(1.0f, kInfinity));
  EXPECT_EQ(at(1.0f, -7.0f), at(1.0f, -kInfinity));
  EXPECT_NE(at(1.0f, 7.0f), at(1.0f, 6.9999995f));
  EXPECT_EQ(bits_of(at(1.0f, -1.0f)), 0u);  // up + 1 is zero
  // Without a limit nothing is cut.
  const ActivationRule open{.kind = Activation::kClampedSwiglu, .limit = kInfinity};
  EXPECT_GT(activation_f32(open, 100.0f, 100.0f), 10000.0f);
  EXPECT_EQ(activation_f32(open, kInfinity, 1.0f), kInfinity);
  EXPECT_EQ(activation_f32(open, 1.0f, -kInfinity), -kInfinity);
}

TEST(Activation, NanAndInfinity) {
  const float nan = float_of(0xffc12345u);
  for (const Activation kind : kKinds) {
    const ActivationRule rule{.kind = kind};
    for (const auto& [gate, up] : {std::pair{nan, 1.0f}, {1.0f, nan}, {nan, nan}, {kInfinity, nan}, {nan, kInfinity}}) {
      if (!rule.gated() && !is_nan(gate)) {
        EXPECT_FALSE(is_nan(activation_f32(rule, gate, up))) << "up is not read where nothing is gated";
        continue;
      }
      EXPECT_EQ(bits_of(activation_f32(rule, gate, up)), kCanonicalNanF32) << static_cast<int>(kind);
      EXPECT_EQ(bits_of(activation_exact(rule, gate, up)), 0x7fff0000u);
      EXPECT_EQ(bits_of(activation_vllm(rule, gate, up)), 0x7fff0000u);
    }
  }
  const ActivationRule silu_rule, gelu{.kind = Activation::kGeluTanh}, relu{.kind = Activation::kRelu2},
      clamped{.kind = Activation::kClampedSwiglu};
  // By the formulas: -Inf / Inf and -Inf * 0 are NaN; the far negative side is zero with its sign.
  EXPECT_TRUE(is_nan(activation_f32(silu_rule, -kInfinity, 1.0f)));
  EXPECT_TRUE(is_nan(activation_f32(gelu, -kInfinity, 1.0f)));
  EXPECT_TRUE(is_nan(activation_f32(clamped, -kInfinity, 1.0f)));
  EXPECT_EQ(bits_of(activation_f32(gelu, -1e20f, 1.0f)), 0x80000000u);
  EXPECT_EQ(bits_of(activation_f32(clamped, -1e20f, 0.0f)), 0x80000000u);
  EXPECT_EQ(activation_f32(gelu, kInfinity, 1.0f), kInfinity);
  EXPECT_EQ(activation_f32(gelu, 1e20f, 1.0f), 1e20f);
  EXPECT_EQ(activation_f32(relu, kInfinity, 0.0f), kInfinity);
  EXPECT_EQ(activation_f32(relu, 1e30f, 0.0f), kInfinity);
  EXPECT_EQ(bits_of(activation_f32(relu, -kInfinity, 0.0f)), 0u);
  EXPECT_EQ(bits_of(activation_f32(relu, -0.0f, 0.0f)), 0u);
}

}  // namespace
}  // namespace quadrille::numerics
