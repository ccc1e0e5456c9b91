// SPDX-License-Identifier: Apache-2.0
// The MoE layer against a slow statement in double, expert by expert, for shapes that no power of two divides; and what
// must hold to the bit on every table: tokens do not see each other, all CPU tables agree.
#include "moe/layer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "core/check.h"
#include "kernels/api/registry.h"
#include "numerics/act_quant.h"
#include "numerics/bf16.h"
#include "numerics/elementwise.h"
#include "numerics/silu.h"
#include "prepare/prepare_bf16.h"
#include "prepare/prepare_w4.h"

namespace quadrille::moe {
namespace {

using kernels::Numerics;
using kernels::Rounding;

// A stack of random matrices in both forms: prepared, and as plain numbers.
struct Stack {
  int64_t experts = 0, n = 0, k = 0, group = 0;
  bool quantised = true;
  std::vector<std::vector<double>> dense;  // [experts] -> [n, k] the values that the weights stand for
  std::vector<prepare::PreparedW4> w4;
  std::vector<kernels::W4Matrix> w4_views;
  std::vector<prepare::PreparedBf16> bf16;
  std::vector<const uint16_t*> bf16_views;

  Linear view() const {
    if (!quantised) return Bf16Linear{experts, n, k, bf16_views.data(), nullptr};
    return W4Linear{experts, n, k, group, w4_views.data(), nullptr};
  }
};

Stack random_stack(std::mt19937* random, int64_t experts, int64_t n, int64_t k, int64_t group, bool quantised) {
  Stack stack{experts, n, k, group, quantised, {}, {}, {}, {}, {}};
  std::uniform_int_distribution<int> code(-8, 7);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  const int64_t groups = group == 0 ? 1 : k / group;
  for (int64_t e = 0; e < experts; ++e) {
    std::vector<int8_t> codes(n * k);
    std::vector<uint16_t> scales(n * groups), plain(n * k);
    for (auto& s : scales) s = numerics::bf16_from_f32(std::exp(0.5f * normal(*random)) / (5 * std::sqrt(float(k))));
    std::vector<double> dense(n * k);
    for (int64_t i = 0; i < n * k; ++i) {
      codes[i] = static_cast<int8_t>(code(*random));
      plain[i] = numerics::bf16_from_f32(normal(*random) / std::sqrt(float(k)));
      const int64_t g = group == 0 ? 0 : i % k / group;
      const double scale = numerics::bf16_to_f32(scales[i / k * groups + g]);
      dense[i] = quantised ? scale * codes[i] : numerics::bf16_to_f32(plain[i]);
    }
    stack.dense.push_back(std::move(dense));
    if (quantised) {
      prepare::CanonicalW4 matrix{n, k, group, nullptr, codes.data(), scales.data()};
      auto prepared = prepare::prepare_w4(matrix, Numerics::kExact);
      QD_CHECK(prepared.ok(), "random weights prepare");
      stack.w4.push_back(std::move(*prepared));
    } else {
      auto prepared = prepare::prepare_bf16({n, k, prepare::DenseType::kBf16, plain.data()});
      QD_CHECK(prepared.ok(), "random weights prepare");
      stack.bf16.push_back(std::move(*prepared));
    }
  }
  for (const auto& matrix : stack.w4) stack.w4_views.push_back(matrix.view());
  for (const auto& matrix : stack.bf16) stack.bf16_views.push_back(matrix.view());
  return stack;
}

struct Shape {
  int64_t experts, top_k, hidden, width, group;
  int64_t shared_width;  // 0: none
  bool shared_gate;
  bool quantised;
  bool weight_on_input;
};

struct Fixture {
  Shape shape;
  Stack gate_up, down, shared_gate_up, shared_down;
  std::vector<uint16_t> shared_gate;
  MoeLayer layer;

  explicit Fixture(const Shape& s) : shape(s) {
    std::mt19937 random(11);
    gate_up = random_stack(&random, s.experts, 2 * s.width, s.hidden, s.group, s.quantised);
    down = random_stack(&random, s.experts, s.hidden, s.width, s.group, s.quantised);
    layer.rule.num_experts = s.experts;
    layer.rule.top_k = s.top_k;
    layer.rule.weight_on_input = s.weight_on_input;
    layer.experts = {s.hidden, s.width, {}, gate_up.view(), down.view()};
    if (s.shared_width > 0) {
      shared_gate_up = random_stack(&random, 1, 2 * s.shared_width, s.hidden, s.group, s.quantised);
      shared_down = random_stack(&random, 1, s.hidden, s.shared_width, s.group, s.quantised);
      layer.shared = GatedMlp{s.hidden, s.shared_width, {}, shared_gate_up.view(), shared_down.view()};
    }
    if (s.shared_gate) {
      std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(float(s.hidden)));
      for (int64_t i = 0; i < s.hidden; ++i) shared_gate.push_back(numerics::bf16_from_f32(normal(random)));
      layer.shared_gate_weight = shared_gate.data();
    }
    const Status legal = check_layer(layer);
    QD_CHECK(legal.ok(), legal.ok() ? "" : legal.error().message);
  }
};

struct Batch {
  int64_t tokens = 0;
  std::vector<float> x;
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

// Routes to distinct experts; expert 0 stays empty where there are enough others; now and then an expert elsewhere.
Batch random_batch(const Shape& s, int64_t tokens) {
  std::mt19937 random(23);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  Batch batch;
  batch.tokens = tokens;
  for (int64_t i = 0; i < tokens * s.hidden; ++i) batch.x.push_back(numerics::round_to_bf16(normal(random)));
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> experts;
    for (int32_t e = s.experts > s.top_k ? 1 : 0; e < s.experts; ++e) experts.push_back(e);
    std::shuffle(experts.begin(), experts.end(), random);
    for (int64_t j = 0; j < s.top_k; ++j) {
      batch.ids.push_back(random() % 8 == 0 ? -1 : experts[j]);
      batch.weights.push_back(std::abs(normal(random)) / 2);
    }
  }
  return batch;
}

std::vector<float> run(const Fixture& f, const Batch& batch, const char* table, Rounding rounding = Rounding::kF32,
                       LayerObserver* observer = nullptr) {
  static ThreadPool pool(2);
  Arena scratch;
  const auto chosen = kernels::select_table(table);
  QD_CHECK(chosen.ok(), table);
  const Execution execution{*chosen, {&pool, &scratch}, Numerics::kExact, rounding};
  std::vector<float> out(batch.tokens * f.shape.hidden, -77.0f);
  const Status status = run_layer(f.layer, batch.x.data(), batch.tokens, {batch.ids.data(), batch.weights.data()},
                                  execution, out.data(), observer);
  QD_CHECK(status.ok(), status.ok() ? "" : status.error().message);
  return out;
}

// What a row of activations stands for after its quantisation; itself where the layer is not quantised.
std::vector<double> seen(const std::vector<float>& row, bool quantised) {
  if (!quantised) return {row.begin(), row.end()};
  float absmax = 0;
  for (const float v : row) absmax = numerics::absmax_step(absmax, v);
  const float scale = numerics::act_scale_of_absmax(absmax);
  std::vector<double> values;
  for (const float v : row) {
    values.push_back(static_cast<double>(numerics::e4m3_to_f32(numerics::act_code(v, scale))) * scale);
  }
  return values;
}

std::vector<float> times(const Stack& stack, int64_t expert, const std::vector<double>& x) {
  std::vector<float> y;
  for (int64_t n = 0; n < stack.n; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < stack.k; ++k) sum += stack.dense[expert][n * stack.k + k] * x[k];
    y.push_back(static_cast<float>(sum));
  }
  return y;
}

std::vector<float> slow_mlp(const Stack& gate_up, const Stack& down, int64_t expert, const std::vector<float>& x) {
  const std::vector<float> both = times(gate_up, expert, seen(x, gate_up.quantised));
  std::vector<float> h;
  const int64_t width = gate_up.n / 2;
  for (int64_t i = 0; i < width; ++i) h.push_back(numerics::silu(both[i]) * both[width + i]);
  return times(down, expert, seen(h, down.quantised));
}

// One token, round f32.
std::vector<double> slow_layer(const Fixture& f, const Batch& batch, int64_t t) {
  const Shape& s = f.shape;
  const std::vector<float> x(batch.x.begin() + t * s.hidden, batch.x.begin() + (t + 1) * s.hidden);
  std::vector<double> out(s.hidden, 0.0);
  for (int64_t j = 0; j < s.top_k; ++j) {
    const int32_t id = batch.ids[t * s.top_k + j];
    if (id < 0) continue;
    const float weight = batch.weights[t * s.top_k + j];
    std::vector<float> input(x);
    for (float& v : input) v = s.weight_on_input ? weight * v : v;
    const std::vector<float> row = slow_mlp(f.gate_up, f.down, id, input);
    for (int64_t i = 0; i < s.hidden; ++i) out[i] += (s.weight_on_input ? 1.0 : weight) * row[i];
  }
  if (s.shared_width == 0) return out;
  double logit = 0;
  for (int64_t i = 0; i < s.hidden && s.shared_gate; ++i) logit += x[i] * numerics::bf16_to_f32(f.shared_gate[i]);
  const double gate = s.shared_gate ? 1 / (1 + std::exp(-logit)) : 1.0;
  const std::vector<float> row = slow_mlp(f.shared_gate_up, f.shared_down, 0, x);
  for (int64_t i = 0; i < s.hidden; ++i) out[i] += gate * row[i];
  return out;
}

double rms(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum / static_cast<double>(x.size()));
}

const Shape kShapes[] = {
    {60, 4, 128, 96, 32, 0, false, true, false},   // 60 experts
    {60, 4, 128, 96, 32, 192, true, true, false},  // gated shared expert
    {5, 2, 192, 64, 64, 128, false, true, false},  // shared expert without gate
    {3, 3, 72, 40, 0, 0, false, true, false},      // one scale a channel, widths that fill no vector
    {7, 1, 128, 128, 128, 0, false, true, true},   // router weight on the input
    {7, 1, 128, 128, 128, 64 * 2, true, true, true}, {6, 2, 50, 36, 0, 20, true, false, false},  // unquantised
    {1, 1, 64, 64, 64, 0, false, true, false},
};

class LayerShapes : public ::testing::TestWithParam<std::tuple<Shape, const char*>> {
 protected:
  void SetUp() override {
    if (const auto table = kernels::select_table(this->table()); !table) GTEST_SKIP() << table.error().message;
  }
  const Shape& shape() const { return std::get<0>(GetParam()); }
  const char* table() const { return std::get<1>(GetParam()); }
};

// Equal codes in, so the difference is that of fp32 sums; an h within that of a rounding boundary may flip, which moves
// a row by less than 2 % of its rms, in no more than one row of twenty.
TEST_P(LayerShapes, EqualTheSlowStatement) {
  const Fixture f(shape());
  const Batch batch = random_batch(shape(), 23);
  const auto out = run(f, batch, table());
  int64_t flips = 0;
  for (int64_t t = 0; t < batch.tokens; ++t) {
    const std::vector<double> expected = slow_layer(f, batch, t);
    std::vector<double> difference;
    for (int64_t i = 0; i < shape().hidden; ++i) difference.push_back(out[t * shape().hidden + i] - expected[i]);
    const double bound = rms(expected) + 1e-30;
    flips += rms(difference) > 2e-6 * bound ? 1 : 0;
    EXPECT_LE(rms(difference), 0.02 * bound) << "token " << t;
  }
  EXPECT_LE(flips, 1);
}

TEST_P(LayerShapes, TokensDoNotSeeEachOther) {
  const Fixture f(shape());
  const Batch batch = random_batch(shape(), 33);
  for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
    const auto together = run(f, batch, table(), rounding);
    for (const int64_t t : {0, 17, 32}) {
      Batch alone;
      alone.tokens = 1;
      alone.x.assign(batch.x.begin() + t * shape().hidden, batch.x.begin() + (t + 1) * shape().hidden);
      alone.ids.assign(batch.ids.begin() + t * shape().top_k, batch.ids.begin() + (t + 1) * shape().top_k);
      alone.weights.assign(batch.weights.begin() + t * shape().top_k, batch.weights.begin() + (t + 1) * shape().top_k);
      const std::vector<float> expected(together.begin() + t * shape().hidden,
                                        together.begin() + (t + 1) * shape().hidden);
      EXPECT_EQ(run(f, alone, table(), rounding), expected) << "token " << t;
    }
  }
}

TEST_P(LayerShapes, NoTokensAndNoRoutesAreFine) {
  const Fixture f(shape());
  EXPECT_TRUE(run(f, Batch{}, table()).empty());
  Batch batch = random_batch(shape(), 2);
  std::fill(batch.ids.begin(), batch.ids.end(), -1);
  const auto out = run(f, batch, table());
  for (int64_t t = 0; t < 2; ++t) {
    const auto expected = slow_layer(f, batch, t);  // the shared expert alone, or zeros
    for (int64_t i = 0; i < shape().hidden; ++i) {
      EXPECT_NEAR(out[t * shape().hidden + i], expected[i], 0.02 * rms(expected)) << "token " << t;
    }
  }
}

std::string shape_name(const ::testing::TestParamInfo<std::tuple<Shape, const char*>>& info) {
  const Shape& s = std::get<0>(info.param);
  return fmt::format("e{}k{}h{}w{}g{}s{}{}{}{}_{}", s.experts, s.top_k, s.hidden, s.width, s.group, s.shared_width,
                     s.shared_gate ? "gated" : "", s.quantised ? "" : "bf16", s.weight_on_input ? "input" : "",
                     std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(All, LayerShapes,
                         ::testing::Combine(::testing::ValuesIn(kShapes),
                                            ::testing::Values("ref", "generic", "avx2", "avx512", "amx")),
                         shape_name);

TEST(Layer, CpuTablesAgreeToTheBit) {
  int compared = 0;
  for (const Shape& shape : kShapes) {
    const Fixture f(shape);
    const Batch batch = random_batch(shape, 40);
    for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
      const auto generic = run(f, batch, "generic", rounding);
      for (const char* table : {"avx2", "avx512", "amx"}) {
        if (!kernels::select_table(table)) continue;
        ++compared;
        EXPECT_EQ(run(f, batch, table, rounding), generic) << table << ", " << shape.experts << " experts";
      }
    }
  }
  if (compared == 0) GTEST_SKIP() << "this machine runs no table beside generic";
}

TEST(Layer, RoundBf16GivesBf16Values) {
  const Fixture f(kShapes[1]);
  for (const float v : run(f, random_batch(kShapes[1], 9), "generic", Rounding::kBf16)) {
    EXPECT_EQ(v, numerics::round_to_bf16(v));
  }
}

class Shapes : public LayerObserver {
 public:
  void stage(const Stage& stage) override { all[stage.name] = {stage.type, stage.shape}; }
  std::map<std::string, std::pair<StageType, std::vector<int64_t>>> all;
};

TEST(Layer, StagesHaveTheirNamesTypesAndShapes) {
  const Fixture f(kShapes[0]);
  Batch batch = random_batch(kShapes[0], 10);
  for (size_t i = 0; i < batch.ids.size(); ++i) batch.ids[i] = static_cast<int32_t>(i);
  Shapes stages;
  run(f, batch, "generic", Rounding::kBf16, &stages);
  using Entry = std::pair<StageType, std::vector<int64_t>>;
  const std::map<std::string, Entry> expected = {
      {"a1", {StageType::kE4M3, {10, 128}}},
      {"a1_scale", {StageType::kF32, {10, 1}}},
      {"expert_first_token_offset", {StageType::kI64, {61}}},
      {"inv_permuted_idx", {StageType::kI32, {10, 4}}},
      {"permuted_idx", {StageType::kI32, {40}}},
      {"gemm1_out", {StageType::kF32, {40, 192}}},  // `exact` keeps gate and up in fp32
      {"act", {StageType::kBf16InF32, {40, 96}}},
      {"a2", {StageType::kE4M3, {40, 96}}},
      {"a2_scale", {StageType::kF32, {40, 1}}},
      {"gemm2_out", {StageType::kBf16InF32, {40, 128}}},
      {"out", {StageType::kBf16InF32, {10, 128}}},
  };
  EXPECT_EQ(stages.all, expected);
}

TEST(Layer, ShapesThatDoNotFitAreErrors) {
  Fixture f(kShapes[0]);
  MoeLayer layer = f.layer;
  layer.experts.width = 64;
  ASSERT_FALSE(check_layer(layer).ok());
  EXPECT_NE(check_layer(layer).error().message.find("gate_up"), std::string::npos)
      << check_layer(layer).error().message;
  layer = f.layer;
  std::get<W4Linear>(layer.experts.down).group_size = 128;
  ASSERT_FALSE(check_layer(layer).ok()) << "96 is no multiple of 128";
  layer = f.layer;
  layer.rule.num_experts = 61;
  EXPECT_FALSE(check_layer(layer).ok());
}

TEST(Layer, AnIdOutsideIsAnError) {
  const Fixture f(kShapes[0]);
  Batch batch = random_batch(kShapes[0], 2);
  batch.ids[3] = 60;
  ThreadPool pool(1);
  Arena scratch;
  const Execution execution{*kernels::select_table("generic"), {&pool, &scratch}, Numerics::kExact, Rounding::kF32};
  std::vector<float> out(2 * 128);
  const Status status =
      run_layer(f.layer, batch.x.data(), 2, {batch.ids.data(), batch.weights.data()}, execution, out.data());
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace quadrille::moe
