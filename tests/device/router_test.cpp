// SPDX-License-Identifier: Apache-2.0
// router_logits against the table `ref`, route_tokens against moe::route_tokens: equal bits, NaN included.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "core/thread_pool.h"
#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "kernels/api/registry.h"
#include "moe/router.h"
#include "numerics/bf16.h"
#include "numerics/bits.h"
#include "numerics/silu.h"

namespace quadrille {
namespace {

using kernels::Scoring;
using moe::RouterRule;
using testing::must;
using testing::on_host;
using testing::PoolMemory;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  bits.reserve(values.size());
  for (const float v : values) bits.push_back(numerics::bits_of(v));
  return bits;
}

class RouterTest : public testing::TableTest {
 protected:
  void SetUp() override {
    TableTest::SetUp();
    if (!IsSkipped()) ref_ = must(kernels::select_table("ref"));
  }

  void check_logits(int64_t tokens, int64_t experts, const std::vector<uint16_t>& x, const std::vector<uint16_t>& w,
                    bool sigmoid) {
    const auto k = static_cast<int64_t>(w.size()) / experts;
    std::vector<float> wide(x.size()), expected(tokens * experts);
    for (size_t i = 0; i < x.size(); ++i) wide[i] = numerics::bf16_to_f32(x[i]);
    kernels::RouterLogits host{tokens, experts, k, wide.data(), w.data(), expected.data()};
    kernels::KernelContext context;
    context.pool = &pool_;
    ref_->router_logits(host, context);
    if (sigmoid) {
      for (float& v : expected) v = numerics::sigmoid(v);
    }
    PoolMemory memory;
    kernels::DeviceRouterLogits p;
    p.num_tokens = tokens;
    p.num_experts = experts;
    p.k = k;
    p.sigmoid = sigmoid;
    p.x = memory.copy_of(x, stream());
    p.weight = memory.copy_of(w, stream());
    p.logits = memory.take<float>(tokens * experts, sizeof(float), stream());
    table_->router_logits(p, stream());
    EXPECT_EQ(
        testing::bit_differences(on_host<uint32_t>(p.logits, tokens * experts, stream()), bits_of(expected), experts),
        "");
    EXPECT_EQ(memory.harmed(stream()), "");
  }

  void check_rule(const RouterRule& rule, const std::vector<float>& logits, const std::vector<float>& bias) {
    const auto tokens = static_cast<int64_t>(logits.size()) / rule.num_experts;
    std::vector<int32_t> ids(tokens * rule.top_k);
    std::vector<float> weights(ids.size());
    moe::route_tokens(rule, bias.empty() ? nullptr : bias.data(), logits.data(), tokens, ids.data(), weights.data(),
                      &pool_);
    PoolMemory memory;
    kernels::DeviceRouteTokens p;
    p.scoring = rule.scoring;
    p.num_tokens = tokens;
    p.num_experts = rule.num_experts;
    p.top_k = rule.top_k;
    p.renormalise = rule.renormalise;
    p.renorm_epsilon = rule.renorm_epsilon;
    p.routed_scaling = rule.routed_scaling;
    p.num_groups = rule.num_groups;
    p.groups_kept = rule.groups_kept;
    p.logits = memory.copy_of(logits, stream());
    p.correction_bias = bias.empty() ? nullptr : memory.copy_of(bias, stream());
    const int64_t count = tokens * rule.top_k;
    p.ids = memory.take<int32_t>(count, sizeof(int32_t), stream());
    p.weights = memory.take<float>(count, sizeof(float), stream());
    table_->route_tokens(p, stream());
    EXPECT_EQ(testing::bit_differences(on_host<int32_t>(p.ids, count, stream()), ids, rule.top_k), "") << "ids";
    EXPECT_EQ(testing::bit_differences(on_host<uint32_t>(p.weights, count, stream()), bits_of(weights), rule.top_k), "")
        << "weights";
    EXPECT_EQ(memory.harmed(stream()), "");
  }

  const kernels::KernelTable* ref_ = nullptr;
  ThreadPool pool_;
};

std::vector<uint16_t> random_bf16(int64_t count, uint32_t seed, float size) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<uint16_t> values(count);
  for (uint16_t& v : values) v = numerics::bf16_from_f32(normal(random));
  return values;
}

TEST_F(RouterTest, LogitsEqualRef) {
  struct Shape {
    int64_t tokens, experts, k;
  };
  const std::vector<Shape> shapes = {{1, 1, 1},        {1, 128, 2048},  {2, 60, 2880},  {7, 256, 7168}, {8, 9, 40},
                                     {9, 5, 33},       {16, 8, 31},     {33, 60, 2048}, {64, 130, 511}, {65, 128, 1024},
                                     {130, 4, 2048},   {300, 1, 768},   {17, 33, 513},  {1000, 16, 96}, {1024, 64, 512},
                                     {1039, 130, 200}, {1100, 7, 1023}, {3000, 33, 64}, {0, 8, 64}};
  for (const Shape& s : shapes) {
    SCOPED_TRACE(fmt::format("{} tokens, {} experts, k {}", s.tokens, s.experts, s.k));
    const auto x = random_bf16(s.tokens * s.k, 1, 1.0f);
    const auto w = random_bf16(s.experts * s.k, 2, 0.03f);
    check_logits(s.tokens, s.experts, x, w, false);
    check_logits(s.tokens, s.experts, x, w, true);
  }
}

// Products below the smallest fp32 number leave -0 behind, which a padded element would turn into +0.
TEST_F(RouterTest, LogitsOfTinyLargeAndNonfiniteRowsEqualRef) {
  for (const int64_t tokens : {6, 100, 1030}) {
    for (const int64_t k : {1, 8, 72, 600}) {
      auto x = random_bf16(tokens * k, 3, 1.0f);
      auto w = random_bf16(9 * k, 4, 1.0f);
      for (int64_t i = 0; i < k; ++i) {
        x[i] = 0x8001;  // with a tiny positive weight: -0 in every lane
        w[i] = 0x0001;
        x[k + i] = 0x7f00;  // overflows
        x[2 * k + i] = 0x0000;
      }
      x[3 * k + k / 2] = 0x7fc1;
      x[4 * k + k / 3] = 0xff80;
      w[8 * k] = 0x7f80;  // infinity times zero
      check_logits(tokens, 9, x, w, false);
      check_logits(tokens, 9, x, w, true);
    }
  }
}

RouterRule rule_of(Scoring scoring, int64_t experts, int64_t top_k, int64_t groups = 1, int64_t kept = 1) {
  RouterRule rule;
  rule.scoring = scoring;
  rule.num_experts = experts;
  rule.top_k = top_k;
  rule.num_groups = groups;
  rule.groups_kept = kept;
  return rule;
}

std::vector<RouterRule> rules() {
  std::vector<RouterRule> all;
  for (const int64_t experts : {1, 6, 8, 31, 60, 64, 128, 257, 512, 1000}) {
    for (const int64_t top_k : {1, 2, 6, 8, 33, 70}) {
      if (top_k > experts) continue;
      all.push_back(rule_of(Scoring::kSoftmaxBeforeTopK, experts, top_k));
      all.push_back(all.back());
      all.back().renormalise = true;
      all.push_back(rule_of(Scoring::kSoftmaxAfterTopK, experts, top_k));
      all.push_back(rule_of(Scoring::kSigmoid, experts, top_k));
      all.back().renormalise = true;
      all.back().renorm_epsilon = 1e-20f;
      all.back().routed_scaling = 2.5f;
    }
  }
  for (const Scoring scoring : {Scoring::kSigmoid, Scoring::kSoftmaxBeforeTopK, Scoring::kSoftmaxAfterTopK}) {
    all.push_back(rule_of(scoring, 256, 8, 8, 4));
    all.back().routed_scaling = 2.5f;
    all.push_back(rule_of(scoring, 160, 6, 8, 3));
    all.push_back(rule_of(scoring, 8, 3, 4, 2));
    all.push_back(rule_of(scoring, 6, 2, 6, 3));
    all.push_back(rule_of(scoring, 400, 40, 40, 35));
    all.push_back(rule_of(scoring, 14000, 3));  // keys do not fit into shared memory
    all.push_back(rule_of(scoring, 16384, 8, 64, 5));
    all.push_back(rule_of(scoring, 65536, 4, 256, 2));
    all.push_back(rule_of(scoring, 12288, 4));  // they just fit
  }
  return all;
}

// Logits on a grid, so that ties are frequent.
std::vector<float> grid_logits(int64_t count, uint32_t seed, float step) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(count);
  for (float& v : logits) v = std::round(normal(random) / step) * step;
  return logits;
}

std::string name_of(const RouterRule& r) {
  return fmt::format("scoring {}, {} experts, top {}, {} of {} groups", static_cast<int>(r.scoring), r.num_experts,
                     r.top_k, r.groups_kept, r.num_groups);
}

TEST_F(RouterTest, ChoicesAndWeightsEqualTheCpuRouter) {
  for (const RouterRule& rule : rules()) {
    SCOPED_TRACE(name_of(rule));
    must(moe::check_router_rule(rule));
    const int64_t tokens = rule.num_experts > 2000 ? 3 : 37;
    for (const float step : {1.0f, 1e-6f}) {
      const auto logits = grid_logits(tokens * rule.num_experts, 7, step);
      check_rule(rule, logits, {});
      check_rule(rule, logits, grid_logits(rule.num_experts, 99, 0.125f));
    }
    if (HasFailure()) return;
  }
}

TEST_F(RouterTest, NonfiniteLogitsAndBiasesEqualTheCpuRouter) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const RouterRule& rule : rules()) {
    if (rule.num_experts < 6 || rule.num_experts > 300) continue;
    SCOPED_TRACE(name_of(rule));
    const int64_t e = rule.num_experts;
    auto logits = grid_logits(9 * e, 8, 0.5f);
    const auto fill = [&](int64_t row, float value) { std::fill_n(logits.begin() + row * e, e, value); };
    fill(0, nan);
    fill(1, -kInf);
    fill(2, kInf);
    fill(3, -0.0f);
    logits[3 * e + 2] = 0.0f;
    logits[4 * e + 1] = nan;
    logits[5 * e + e - 1] = kInf;
    logits[6 * e + 3] = -kInf;
    fill(7, 3e38f);
    fill(8, nan);
    logits[8 * e + e - 1] = -5.0f;
    check_rule(rule, logits, {});
    auto bias = grid_logits(e, 98, 0.25f);
    bias[0] = kInf;
    bias[1] = -kInf;
    bias[e - 1] = nan;
    check_rule(rule, logits, bias);
    if (HasFailure()) return;
  }
}

TEST_F(RouterTest, AnyNumberOfTokens) {
  const RouterRule rule = rule_of(Scoring::kSoftmaxBeforeTopK, 128, 8);
  for (const int64_t tokens : {0, 1, 2, 3, 4, 5, 1024, 20001}) {
    SCOPED_TRACE(fmt::format("{} tokens", tokens));
    check_rule(rule, grid_logits(tokens * 128, 5, 1e-3f), {});
  }
}

}  // namespace
}  // namespace quadrille
