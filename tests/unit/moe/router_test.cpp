// SPDX-License-Identifier: Apache-2.0
// The router against a slow statement of the same rules: sort all experts, then take; and cases worked by hand.
#include "moe/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "numerics/bits.h"
#include "numerics/exp.h"
#include "numerics/lane_sum.h"
#include "numerics/silu.h"

namespace quadrille::moe {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routed route(const RouterRule& rule, const std::vector<float>& logits, const std::vector<float>& bias = {},
             ThreadPool* pool = nullptr) {
  const auto tokens = static_cast<int64_t>(logits.size()) / rule.num_experts;
  Routed routed{std::vector<int32_t>(tokens * rule.top_k), std::vector<float>(tokens * rule.top_k)};
  route_tokens(rule, bias.empty() ? nullptr : bias.data(), logits.data(), tokens, routed.ids.data(),
               routed.weights.data(), pool);
  return routed;
}

// The rules said directly: scores, a mask of -infinity, a stable sort of all experts.
Routed slow_route(const RouterRule& rule, const std::vector<float>& logits, const std::vector<float>& bias) {
  const int64_t e = rule.num_experts, size = e / rule.num_groups;
  std::vector<float> score(logits), choice;
  const auto softmax = [](std::vector<float> x) {
    const float top = *std::max_element(x.begin(), x.end());
    for (float& v : x) v = numerics::exp_f32(v - top);
    const float sum = numerics::lane_sum(x.data(), static_cast<int64_t>(x.size()));
    for (float& v : x) v = v / sum;
    return x;
  };
  if (rule.scoring == Scoring::kSoftmaxBeforeTopK) score = softmax(logits);
  if (rule.scoring == Scoring::kSigmoid) {
    for (float& v : score) v = numerics::sigmoid(v);
  }
  choice = score;
  for (int64_t i = 0; i < e && !bias.empty(); ++i) choice[i] += bias[i];
  std::vector<float> group(rule.num_groups);
  for (int64_t g = 0; g < rule.num_groups; ++g) {
    std::vector<float> of(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(of.rbegin(), of.rend());
    group[g] = rule.scoring == Scoring::kSigmoid && size > 1 ? of[0] + of[1] : of[0];
  }
  std::vector<int32_t> order(rule.num_groups);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return group[a] > group[b]; });
  for (size_t i = rule.groups_kept; i < order.size(); ++i) {
    std::fill_n(choice.begin() + order[i] * size, size, -kInf);
  }
  std::vector<int32_t> experts(e);
  std::iota(experts.begin(), experts.end(), 0);
  std::stable_sort(experts.begin(), experts.end(), [&](int a, int b) { return choice[a] > choice[b]; });
  experts.resize(rule.top_k);
  std::vector<float> weights;
  for (const int32_t id : experts) weights.push_back(score[id]);
  if (rule.scoring == Scoring::kSoftmaxAfterTopK) weights = softmax(weights);
  if (rule.renormalise) {
    const float sum = numerics::lane_sum(weights.data(), rule.top_k) + rule.renorm_epsilon;
    for (float& w : weights) w = w / sum;
  }
  for (float& w : weights) w = w * rule.routed_scaling;
  return {experts, weights};
}

RouterRule rule_of(Scoring scoring, int64_t experts, int64_t top_k) {
  RouterRule rule;
  rule.scoring = scoring;
  rule.num_experts = experts;
  rule.top_k = top_k;
  return rule;
}

// Logits on a coarse grid, so that ties are frequent.
std::vector<float> random_logits(int64_t count, uint32_t seed, float step) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> logits(count);
  for (float& v : logits) v = std::round(normal(random) / step) * step;
  return logits;
}

class RouterRules : public ::testing::TestWithParam<RouterRule> {};

TEST_P(RouterRules, EqualTheSlowStatement) {
  const RouterRule& rule = GetParam();
  ASSERT_TRUE(check_router_rule(rule).ok());
  std::vector<float> bias;
  if (rule.scoring == Scoring::kSigmoid) bias = random_logits(rule.num_experts, 99, 0.125f);
  for (const float step : {1.0f, 0.25f, 1e-6f}) {
    const int64_t tokens = 50;
    const auto logits = random_logits(tokens * rule.num_experts, 7, step);
    ThreadPool pool(2);
    const Routed routed = route(rule, logits, bias, &pool);
    EXPECT_EQ(routed.ids, route(rule, logits, bias).ids) << "threads change nothing";
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<float> row(logits.begin() + t * rule.num_experts, logits.begin() + (t + 1) * rule.num_experts);
      const Routed expected = slow_route(rule, row, bias);
      for (int64_t j = 0; j < rule.top_k; ++j) {
        ASSERT_EQ(routed.ids[t * rule.top_k + j], expected.ids[j]) << "token " << t << ", choice " << j;
        ASSERT_EQ(routed.weights[t * rule.top_k + j], expected.weights[j]) << "token " << t << ", choice " << j;
      }
    }
  }
}

std::vector<RouterRule> rules() {
  std::vector<RouterRule> all;
  for (const int64_t experts : {1, 6, 60, 64, 128, 257}) {
    for (const int64_t top_k : {1, 2, 4, 8}) {
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
  for (const Scoring scoring : {Scoring::kSigmoid, Scoring::kSoftmaxBeforeTopK}) {
    all.push_back(rule_of(scoring, 256, 8));
    all.back().num_groups = 8;
    all.back().groups_kept = 4;
    all.back().routed_scaling = 2.5f;
    all.push_back(rule_of(scoring, 8, 3));
    all.back().num_groups = 4;
    all.back().groups_kept = 2;
    all.push_back(rule_of(scoring, 6, 2));
    all.back().num_groups = 6;
    all.back().groups_kept = 3;
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, RouterRules, ::testing::ValuesIn(rules()));

TEST(Router, TiesGoToTheLowerExpert) {
  const Routed routed = route(rule_of(Scoring::kSoftmaxBeforeTopK, 60, 4), std::vector<float>(60, 1.5f));
  EXPECT_EQ(routed.ids, (std::vector<int32_t>{0, 1, 2, 3}));
  std::vector<float> logits(60, 0.0f);
  logits[59] = logits[17] = 3.0f;
  EXPECT_EQ(route(rule_of(Scoring::kSigmoid, 60, 4), logits).ids, (std::vector<int32_t>{17, 59, 0, 1}));
}

TEST(Router, RenormalisedWeightsSumToTheScalingFactor) {
  RouterRule rule = rule_of(Scoring::kSoftmaxBeforeTopK, 128, 8);
  const auto logits = random_logits(128 * 20, 3, 0.01f);
  const auto sum_of = [&](const Routed& routed, int64_t t) {
    return std::accumulate(&routed.weights[t * 8], &routed.weights[t * 8] + 8, 0.0);
  };
  const Routed plain = route(rule, logits);
  rule.renormalise = true;
  rule.routed_scaling = 2.5f;
  const Routed scaled = route(rule, logits);
  for (int64_t t = 0; t < 20; ++t) {
    EXPECT_LT(sum_of(plain, t), 1.0);
    // Eight roundings of a division and of a product.
    EXPECT_NEAR(sum_of(scaled, t), 2.5, 2.5 * 8 * 0x1p-23);
  }
}

TEST(Router, BiasChoosesAndScoreWeighs) {
  RouterRule rule = rule_of(Scoring::kSigmoid, 4, 1);
  const Routed routed = route(rule, {2.0f, 1.0f, 0.0f, -1.0f}, {0.0f, 0.0f, 0.0f, 1.0f});
  EXPECT_EQ(routed.ids[0], 3);
  EXPECT_EQ(routed.weights[0], numerics::sigmoid(-1.0f)) << "the weight has no bias";
}

// A mask of 0 instead of -infinity would pick an expert of a dropped group here: all biased scores are negative.
TEST(Router, DroppedGroupsAreOutEvenWhenScoresAreNegative) {
  RouterRule rule = rule_of(Scoring::kSigmoid, 4, 2);
  rule.num_groups = 2;
  rule.groups_kept = 1;
  const Routed routed = route(rule, {0, 0, 0, 0}, {-2.0f, -3.0f, -4.0f, -5.0f});
  EXPECT_EQ(routed.ids, (std::vector<int32_t>{0, 1}));
}

TEST(Router, GroupScoreIsTwoBestForSigmoidAndBestForSoftmax) {
  RouterRule rule = rule_of(Scoring::kSigmoid, 4, 1);
  rule.num_groups = 2;
  rule.groups_kept = 1;
  const std::vector<float> logits = {3.0f, -9.0f, 2.0f, 2.0f};  // best single in group 0, best pair in group 1
  EXPECT_EQ(route(rule, logits).ids[0], 2);
  rule.scoring = Scoring::kSoftmaxBeforeTopK;
  EXPECT_EQ(route(rule, logits).ids[0], 0);
}

TEST(Router, NotANumberTakesTheLowestExpertsAndStaysVisible) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Routed all = route(rule_of(Scoring::kSoftmaxBeforeTopK, 6, 2), std::vector<float>(6, nan));
  EXPECT_EQ(all.ids, (std::vector<int32_t>{0, 1}));
  EXPECT_TRUE(std::isnan(all.weights[0]) && std::isnan(all.weights[1]));
  const Routed one = route(rule_of(Scoring::kSigmoid, 3, 2), {nan, -5.0f, -6.0f});
  EXPECT_EQ(one.ids, (std::vector<int32_t>{1, 2})) << "an expert that is not a number loses";
  RouterRule grouped = rule_of(Scoring::kSigmoid, 4, 2);
  grouped.num_groups = 2;
  grouped.groups_kept = 1;
  EXPECT_EQ(route(grouped, {nan, nan, nan, nan}).ids, (std::vector<int32_t>{0, 1})) << "and never a dropped group";
}

TEST(Router, GroupOfOppositeInfinitiesIsNoChoiceAndNanWeightsAreCanonical) {
  RouterRule rule = rule_of(Scoring::kSigmoid, 6, 1);
  rule.num_groups = 3;
  rule.groups_kept = 1;
  const Routed routed = route(rule, std::vector<float>(6, 0.0f), {kInf, -kInf, 0.0f, 0.0f, 1.0f, 1.0f});
  EXPECT_EQ(routed.ids[0], 4) << "Inf - Inf counts as -infinity, wherever it stands";
  rule = rule_of(Scoring::kSigmoid, 4, 2);
  rule.renormalise = true;  // 0 / 0
  for (const float w : route(rule, std::vector<float>(4, -kInf)).weights) {
    EXPECT_EQ(numerics::bits_of(w), numerics::kCanonicalNanF32);
  }
}

TEST(Router, BrokenRulesAreErrors) {
  RouterRule rule = rule_of(Scoring::kSigmoid, 60, 4);
  EXPECT_TRUE(check_router_rule(rule).ok());
  const auto message = [](RouterRule broken) {
    const Status status = check_router_rule(broken);
    return status.ok() ? std::string() : status.error().message;
  };
  RouterRule broken = rule;
  broken.top_k = 61;
  EXPECT_NE(message(broken).find("1 to 60"), std::string::npos) << message(broken);
  broken = rule;
  broken.num_groups = 7;
  EXPECT_NE(message(broken).find("7 groups"), std::string::npos);
  broken = rule;
  broken.num_groups = 60;
  broken.groups_kept = 3;
  EXPECT_NE(message(broken).find("1 to 3"), std::string::npos) << message(broken);
  broken = rule;
  broken.weight_on_input = true;
  EXPECT_NE(message(broken), "");
  broken.top_k = 1;
  EXPECT_EQ(message(broken), "");
  broken = rule_of(Scoring::kSoftmaxAfterTopK, 4, 2);
  broken.renormalise = true;
  EXPECT_NE(message(broken), "");
  broken = rule;
  broken.num_experts = 0;
  EXPECT_NE(message(broken), "");
}

}  // namespace
}  // namespace quadrille::moe
