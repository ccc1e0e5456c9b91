// SPDX-License-Identifier: Apache-2.0
// Every form of the layer (activation, numerics, expert biases, routes that repeat or lead nowhere): `hopper` against
// the scalar statement to the bit, the CPU tables against each other to the bit and against `ref`.
#include <gtest/gtest.h>

#include <cstring>

#include "w4_experts.h"

namespace quadrille::moe {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using quadrille::numerics::bits_of;

constexpr int64_t kExperts = 5, kTopK = 3, kHidden = 96, kWidth = 64, kTokens = 11;

struct Form {
  kernels::ActivationRule rule;
  Numerics numerics;
  bool bias;
};

std::vector<Form> every_form() {
  std::vector<Form> forms;
  for (const auto& rule : every_activation()) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      for (const bool bias : {false, true}) forms.push_back({rule, numerics, bias});
    }
  }
  return forms;
}

std::string form_name(const Form& form) {
  return fmt::format("kind {} {}{}", static_cast<int>(form.rule.kind),
                     form.numerics == Numerics::kExact ? "exact" : "vllm", form.bias ? " bias" : "");
}

struct Sample {
  ExpertPair experts, shared;
  MoeLayer layer;
  std::vector<float> x;
  std::vector<int32_t> ids;
  std::vector<float> weights;

  explicit Sample(const Form& form, bool with_shared = true)
      : experts(kExperts, kHidden, kWidth, 32, form.rule, form.numerics, form.bias, 1),
        shared(1, kHidden, 2 * kWidth, 32, form.rule, form.numerics, form.bias, 3) {
    layer.rule.num_experts = kExperts;
    layer.rule.top_k = kTopK;
    layer.experts = experts.view();
    if (with_shared) layer.shared = shared.view();
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kTokens * kHidden; ++i) x.push_back(numerics::round_to_bf16(normal(random)));
    for (int64_t i = 0; i < kTokens * kTopK; ++i) {
      ids.push_back(static_cast<int32_t>(random() % kExperts));
      weights.push_back(std::fabs(normal(random)) / 2);
    }
    const int32_t first[4 * kTopK] = {3, 3, 1, 2, 2, 2, -1, 4, -1, -1, -1, -1};  // repeated, absent, nowhere
    std::copy(std::begin(first), std::end(first), ids.begin());
  }

  std::vector<float> run(const char* name, Rounding rounding, Numerics numerics) const {
    ThreadPool pool(2);
    Arena scratch;
    const Execution execution{*kernels::select_table(name), {&pool, &scratch}, numerics, rounding};
    std::vector<float> out(static_cast<size_t>(kTokens * kHidden), std::nanf(""));
    const Status status = run_layer(layer, x.data(), kTokens, {ids.data(), weights.data()}, execution, out.data());
    if (!status) throw std::runtime_error(status.error().message);
    return out;
  }
  std::vector<float> token(int64_t t) const { return {x.begin() + t * kHidden, x.begin() + (t + 1) * kHidden}; }
};

std::vector<float> hopper_token(const Sample& s, int64_t t) {
  const CodedRow x = coded(s.token(t));
  std::vector<float> acc(kHidden, 0.0f);
  for (int64_t j = 0; j < kTopK; ++j) {
    const int32_t id = s.ids[static_cast<size_t>(t * kTopK + j)];
    if (id < 0) continue;
    const std::vector<float> row = s.experts.hopper_row(id, x);
    for (size_t i = 0; i < acc.size(); ++i) {
      acc[i] = std::fmaf(s.weights[static_cast<size_t>(t * kTopK + j)], row[i], acc[i]);
    }
  }
  const std::vector<float> row = s.shared.hopper_row(0, x);
  for (size_t i = 0; i < acc.size(); ++i) acc[i] = numerics::round_to_bf16(std::fmaf(1.0f, row[i], acc[i]));
  return acc;
}

TEST(LayerForms, HopperEqualsTheStatement) {
  for (const Form& form : every_form()) {
    const Sample sample(form);
    ASSERT_TRUE(check_layer(sample.layer)) << check_layer(sample.layer).error().message;
    const auto out = sample.run("hopper", Rounding::kBf16, form.numerics);
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto expected = hopper_token(sample, t);
      for (int64_t i = 0; i < kHidden; ++i) {
        ASSERT_EQ(bits_of(out[static_cast<size_t>(t * kHidden + i)]), bits_of(expected[static_cast<size_t>(i)]))
            << form_name(form) << " token " << t << " column " << i;
      }
    }
  }
}

// The forms are really different: none of them is ignored on the way.
TEST(LayerForms, EveryFormHasItsOwnResult) {
  std::vector<std::vector<float>> seen;
  for (const Form& form : every_form()) {
    const auto out = Sample(form).run("hopper", Rounding::kBf16, form.numerics);
    for (const auto& other : seen) EXPECT_NE(out, other) << form_name(form);
    seen.push_back(out);
  }
}

TEST(LayerForms, CpuTablesAgreeToTheBit) {
  int compared = 0;
  for (const Form& form : every_form()) {
    const Sample sample(form);
    for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
      const auto generic = sample.run("generic", rounding, form.numerics);
      for (const char* table : {"avx2", "avx512", "amx"}) {
        if (!kernels::select_table(table)) continue;
        ++compared;
        EXPECT_EQ(sample.run(table, rounding, form.numerics), generic) << table << " " << form_name(form);
      }
    }
  }
  if (compared == 0) GTEST_SKIP() << "this machine runs no table beside generic";
}

double rms(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double d = double{a[i]} - (b == nullptr ? 0.0 : double{b[i]});
    sum += d * d;
  }
  return std::sqrt(sum / static_cast<double>(count));
}

// Both have equal codes in, so the difference is that of fp32 sums; an intermediate value within that of a rounding
// boundary of e4m3 may flip, which moves a row by less than 2 % of its rms, in no more than one row of ten.
TEST(LayerForms, GenericIsNearRef) {
  for (const Form& form : every_form()) {
    const Sample sample(form);
    const auto truth = sample.run("ref", Rounding::kF32, form.numerics);
    const auto out = sample.run("generic", Rounding::kF32, form.numerics);
    int64_t flips = 0;
    for (int64_t t = 0; t < kTokens; ++t) {
      const float* expected = truth.data() + t * kHidden;
      const double difference = rms(out.data() + t * kHidden, expected, kHidden);
      flips += difference > 2e-6 * rms(expected, nullptr, kHidden) ? 1 : 0;
      EXPECT_LE(difference, 0.02 * rms(expected, nullptr, kHidden)) << form_name(form) << " token " << t;
    }
    EXPECT_LE(flips, 1) << form_name(form);
  }
}

// An expert named twice is two routes: their weights do not merge before the chain, and the row is the same row.
TEST(LayerForms, AnExpertNamedTwiceCountsTwice) {
  for (const char* table : {"ref", "hopper", "generic", "avx2", "avx512", "amx"}) {
    if (!kernels::select_table(table)) continue;
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      Sample twice({{}, numerics, true}, false), once({{}, numerics, true}, false);
      for (int64_t t = 0; t < kTokens; ++t) {
        const int32_t two[kTopK] = {4, 4, -1}, one[kTopK] = {-1, 4, -1};
        std::copy(two, two + kTopK, twice.ids.begin() + t * kTopK);
        std::copy(one, one + kTopK, once.ids.begin() + t * kTopK);
        once.weights[static_cast<size_t>(t * kTopK + 1)] = 1.0f;
      }
      const auto rows = once.run(table, Rounding::kBf16, numerics);  // the bf16 rows themselves
      const auto out = twice.run(table, Rounding::kBf16, numerics);
      for (size_t i = 0; i < out.size(); ++i) {
        const float* w = twice.weights.data() + i / kHidden * kTopK;
        const float expected = numerics::round_to_bf16(std::fmaf(w[1], rows[i], std::fmaf(w[0], rows[i], 0.0f)));
        ASSERT_EQ(bits_of(out[i]), bits_of(expected)) << table;
      }
    }
  }
}

// No route here: +0 everywhere, or the shared expert alone, whatever the weights say (NaN among them).
TEST(LayerForms, AllRoutesElsewhere) {
  for (const char* table : {"ref", "hopper", "generic", "avx2", "avx512", "amx"}) {
    if (!kernels::select_table(table)) continue;
    for (const Form& form : every_form()) {
      Sample nowhere(form, false), shared(form, true);
      for (Sample* s : {&nowhere, &shared}) {
        std::fill(s->ids.begin(), s->ids.end(), -1);
        std::fill(s->weights.begin(), s->weights.end(), std::nanf(""));
      }
      for (const float y : nowhere.run(table, Rounding::kBf16, form.numerics)) ASSERT_EQ(bits_of(y), 0u) << table;

      ThreadPool pool(2);
      Arena scratch;
      const Execution execution{*kernels::select_table(table), {&pool, &scratch}, form.numerics, Rounding::kBf16};
      LinearInput input(shared.x.data(), kTokens, kHidden);
      std::vector<float> alone(static_cast<size_t>(kTokens * kHidden));
      ASSERT_TRUE(run_mlp(*shared.layer.shared, &input, execution, alone.data()));
      EXPECT_EQ(shared.run(table, Rounding::kBf16, form.numerics), alone) << table << " " << form_name(form);
    }
  }
}

TEST(LayerForms, ShapesFollowTheActivation) {
  const Sample gated({{}, Numerics::kExact, false}),
      relu({{.kind = kernels::Activation::kRelu2}, Numerics::kExact, false});
  MoeLayer layer = relu.layer;
  layer.experts.activation = {};
  ASSERT_FALSE(check_layer(layer)) << "a gated activation needs 2 * width rows";
  EXPECT_NE(check_layer(layer).error().message.find("expected 5 matrices [128, 96], found 5 matrices [64, 96]"),
            std::string::npos)
      << check_layer(layer).error().message;
  layer = gated.layer;
  layer.experts.activation.kind = kernels::Activation::kRelu2;
  EXPECT_FALSE(check_layer(layer));
}

TEST(LayerForms, RulesWithoutSenseAreErrors) {
  using kernels::Activation;
  const float inf = INFINITY, nan = std::nanf("");
  EXPECT_TRUE(check_activation({.kind = Activation::kClampedSwiglu, .limit = inf}));
  EXPECT_TRUE(check_activation({.kind = Activation::kSilu, .limit = nan})) << "silu has no limit";
  for (const kernels::ActivationRule& rule : {kernels::ActivationRule{Activation::kClampedSwiglu, 1.702f, 0.0f, 1.0f},
                                              {Activation::kClampedSwiglu, 1.702f, -7.0f, 1.0f},
                                              {Activation::kClampedSwiglu, 1.702f, nan, 1.0f},
                                              {Activation::kClampedSwiglu, nan, 7.0f, 1.0f},
                                              {Activation::kClampedSwiglu, 1.702f, 7.0f, inf}}) {
    const Status status = check_activation(rule);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
  }
  Sample sample({{}, Numerics::kExact, false});
  sample.layer.shared->activation = {Activation::kClampedSwiglu, 1.0f, -1.0f, 1.0f};
  EXPECT_FALSE(check_layer(sample.layer));
}

}  // namespace
}  // namespace quadrille::moe
