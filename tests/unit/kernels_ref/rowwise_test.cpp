// SPDX-License-Identifier: Apache-2.0
// The row-wise steps of every table against the shared functions of numerics/, bit for bit, with NaN, infinities and
// zeros among the values and every rounding point.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "numerics/act_quant.h"
#include "numerics/activation.h"
#include "numerics/elementwise.h"
#include "numerics/lane_sum.h"
#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using numerics::bits_of;

class Rowwise : public ::testing::TestWithParam<const kernels::KernelTable*> {
 protected:
  void SetUp() override {
    const std::string reason = table().unavailable_reason();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  const kernels::KernelTable& table() const { return *GetParam(); }
  kernels::KernelContext context() { return {&pool, &scratch}; }

  // Normal values of many sizes; one in 100 is special where `special` is set.
  std::vector<float> values(int64_t count, bool special) {
    const float specials[] = {0.0f, -0.0f, INFINITY, -INFINITY, std::nanf(""), 1e-40f, 3e38f, -104.0f};
    std::normal_distribution<float> normal(0.0f, 2.0f);
    std::vector<float> out;
    for (int64_t i = 0; i < count; ++i) {
      out.push_back(special && random() % 100 == 0 ? specials[random() % 8] : normal(random));
    }
    return out;
  }
  std::vector<uint16_t> weights(int64_t count) {
    std::vector<uint16_t> out;
    for (float x : values(count, false)) out.push_back(numerics::bf16_from_f32(x));
    return out;
  }

  ThreadPool pool{2};
  Arena scratch;
  std::mt19937 random{42};
};

constexpr int64_t kWidths[] = {1, 7, 16, 31, 32, 100, 128, 513};
constexpr Rounding kRoundings[] = {Rounding::kBf16, Rounding::kF32};

TEST_P(Rowwise, QuantizeRows) {
  for (const int64_t k : kWidths) {
    const int64_t rows = 70;
    auto x = values(rows * k, true);
    for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(3 * k + i)] = 0.0f;
    for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(4 * k + i)] = std::nanf("");
    std::vector<uint8_t> act(x.size());
    std::vector<float> scale(static_cast<size_t>(rows));
    table().quantize_rows({rows, k, x.data(), act.data(), scale.data()}, context());
    for (int64_t r = 0; r < rows; ++r) {
      float absmax = 0.0f;
      for (int64_t i = 0; i < k; ++i) absmax = numerics::absmax_step(absmax, x[static_cast<size_t>(r * k + i)]);
      const float sa = numerics::act_scale_of_absmax(absmax);
      ASSERT_EQ(bits_of(scale[static_cast<size_t>(r)]), bits_of(sa));
      for (int64_t i = 0; i < k; ++i) {
        const size_t at = static_cast<size_t>(r * k + i);
        ASSERT_EQ(act[at], numerics::act_code(x[at], sa)) << x[at] << " / " << sa;
      }
    }
  }
}

float activated(const kernels::ActivationRule& rule, Numerics numerics, Rounding rounding, float gate, float up) {
  if (rounding == Rounding::kF32) return numerics::activation_f32(rule, gate, up);
  return numerics == Numerics::kExact ? numerics::activation_exact(rule, gate, up)
                                      : numerics::activation_vllm(rule, gate, up);
}

// Rows of 2 * width columns where the rule is gated, else of width.
TEST_P(Rowwise, Activations) {
  const kernels::ActivationRule rules[] = {{},
                                           {.kind = kernels::Activation::kClampedSwiglu},
                                           {.kind = kernels::Activation::kClampedSwiglu, .alpha = 1, .limit = 0.5f},
                                           {.kind = kernels::Activation::kGeluTanh},
                                           {.kind = kernels::Activation::kRelu2}};
  for (const int64_t width : kWidths) {
    const int64_t rows = 5;
    for (int variant = 0; variant < 20; ++variant) {
      const kernels::ActivationRule& rule = rules[variant / 4];
      const Rounding rounding = kRoundings[variant % 2];
      const Numerics numerics = variant / 2 % 2 == 0 ? Numerics::kExact : Numerics::kVllm;
      const int64_t columns = rule.gated() ? 2 * width : width;
      const auto x = values(rows * columns, true);
      std::vector<float> out(static_cast<size_t>(rows * width), std::nanf(""));
      table().gated_activation({rule, numerics, rounding, rows, width, x.data(), out.data()}, context());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i) {
          const float gate = x[static_cast<size_t>(r * columns + i)];
          const float up = rule.gated() ? x[static_cast<size_t>(r * columns + width + i)] : 0.0f;
          ASSERT_EQ(bits_of(out[static_cast<size_t>(r * width + i)]),
                    bits_of(activated(rule, numerics, rounding, gate, up)))
              << "variant " << variant << ": " << gate << " " << up;
        }
      }
    }
  }
}

TEST_P(Rowwise, RmsNorm) {
  for (const int64_t width : kWidths) {
    const int64_t rows = 6, stride = width + 3;
    auto x = values(rows * stride, false);
    x[static_cast<size_t>(2 * stride)] = std::nanf("");
    const auto weight = weights(width);
    for (const Rounding rounding : kRoundings) {
      auto out = x;  // in place
      kernels::RmsNorm p{rounding, rows, width, stride, 1e-6f, out.data(), weight.data(), out.data()};
      table().rms_norm(p, context());
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = x.data() + r * stride;
        const float scale = numerics::rms_scale(numerics::lane_sum_squares(row, width), width, 1e-6f);
        for (int64_t i = 0; i < stride; ++i) {
          const size_t at = static_cast<size_t>(r * stride + i);
          const float expected = i >= width ? x[at]
                                            : numerics::rms_norm_value(
                                                  row[i], scale, numerics::bf16_to_f32(weight[static_cast<size_t>(i)]),
                                                  rounding == Rounding::kBf16);
          ASSERT_EQ(bits_of(out[at]), bits_of(expected)) << width << " " << r << " " << i;
        }
      }
    }
  }
}

TEST_P(Rowwise, Rope) {
  for (const auto& [dim, rotary] : {std::pair<int64_t, int64_t>{32, 32}, {80, 40}, {24, 24}, {10, 6}, {128, 128}}) {
    const int64_t tokens = 9, heads = 3, stride = heads * dim + 7, positions = 20;
    const auto x = values(tokens * stride, true);
    const auto cos = values(positions * rotary / 2, false), sin = values(positions * rotary / 2, false);
    std::vector<int32_t> position;
    for (int64_t t = 0; t < tokens; ++t) position.push_back(static_cast<int32_t>(random() % positions));
    for (const Rounding rounding : kRoundings) {
      const bool to_bf16 = rounding == Rounding::kBf16;
      auto out = x, expected = x;
      table().rope({rounding, tokens, heads, dim, rotary, stride, cos.data(), sin.data(), position.data(), out.data()},
                   context());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = 0; i < rotary / 2; ++i) {
            const size_t at = static_cast<size_t>(t * stride + h * dim + i);
            const size_t pair = at + static_cast<size_t>(rotary / 2);
            const size_t angle = static_cast<size_t>(position[static_cast<size_t>(t)] * (rotary / 2) + i);
            expected[at] = numerics::rope_first(x[at], x[pair], cos[angle], sin[angle], to_bf16);
            expected[pair] = numerics::rope_second(x[at], x[pair], cos[angle], sin[angle], to_bf16);
          }
        }
      }
      for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(bits_of(out[i]), bits_of(expected[i])) << dim << " " << i;
    }
  }
}

TEST_P(Rowwise, RouterLogits) {
  for (const int64_t k : kWidths) {
    for (const int64_t experts : {1, 6, 60, 128}) {
      const int64_t tokens = 4;
      auto x = values(tokens * k, false);
      x[0] = std::nanf("");
      const auto weight = weights(experts * k);
      std::vector<float> logits(static_cast<size_t>(tokens * experts));
      table().router_logits({tokens, experts, k, x.data(), weight.data(), logits.data()}, context());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t e = 0; e < experts; ++e) {
          const float dot = numerics::lane_dot_bf16(x.data() + t * k, weight.data() + e * k, k);
          ASSERT_EQ(bits_of(logits[static_cast<size_t>(t * experts + e)]), bits_of(numerics::canonical(dot)));
        }
      }
    }
  }
}

TEST_P(Rowwise, Combine) {
  for (const int64_t width : kWidths) {
    const int64_t tokens = 6, top_k = 3, slots = 14;
    const auto rows = values(slots * width, true), shared = values(tokens * width, true);
    const auto weight = values(tokens * top_k, false), gate = values(tokens, false);
    std::vector<int32_t> slot;
    for (int64_t i = 0; i < tokens * top_k; ++i) slot.push_back(static_cast<int32_t>(random() % slots));
    slot[4] = -1;
    for (int variant = 0; variant < 6; ++variant) {
      const Rounding rounding = kRoundings[variant % 2];
      std::vector<float> out(static_cast<size_t>(tokens * width));
      kernels::Combine p{rounding,
                         tokens,
                         top_k,
                         width,
                         rows.data(),
                         slot.data(),
                         weight.data(),
                         variant / 2 == 0 ? nullptr : shared.data(),
                         variant / 2 == 2 ? gate.data() : nullptr,
                         out.data()};
      table().combine(p, context());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < width; ++i) {
          float acc = 0.0f;
          for (int64_t j = 0; j < top_k; ++j) {
            const int32_t s = slot[static_cast<size_t>(t * top_k + j)];
            if (s >= 0) {
              acc =
                  std::fmaf(weight[static_cast<size_t>(t * top_k + j)], rows[static_cast<size_t>(s * width + i)], acc);
            }
          }
          const float g = variant / 2 == 2 ? gate[static_cast<size_t>(t)] : 1.0f;
          if (variant / 2 != 0) acc = std::fmaf(g, shared[static_cast<size_t>(t * width + i)], acc);
          ASSERT_EQ(bits_of(out[static_cast<size_t>(t * width + i)]),
                    bits_of(numerics::round_output(acc, rounding == Rounding::kBf16)));
        }
      }
    }
  }
}

TEST_P(Rowwise, AddResidual) {
  for (const int64_t count : {1, 15, 64, 5000, 300000}) {
    const auto x = values(count, true), y = values(count, true);
    for (const Rounding rounding : kRoundings) {
      auto out = x;
      table().add_residual({rounding, count, out.data(), y.data()}, context());
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_EQ(bits_of(out[i]), bits_of(numerics::round_output(x[i] + y[i], rounding == Rounding::kBf16)));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, Rowwise,
                         ::testing::ValuesIn(kernels::all_tables().begin(), kernels::all_tables().end()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
}  // namespace quadrille
