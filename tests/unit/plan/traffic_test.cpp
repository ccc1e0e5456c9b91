// SPDX-License-Identifier: Apache-2.0
// What ranks send, by hand; and the rules by which it takes time.
#include "plan/traffic.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "unit/plan/plan_case.h"

namespace quadrille::plan {
namespace {

const PlanCollective* find(const std::vector<PlanCollective>& list, const std::string& name) {
  const auto at = std::find_if(list.begin(), list.end(), [&](const auto& c) { return c.name == name; });
  return at == list.end() ? nullptr : &*at;
}

std::vector<PlanCollective> collectives_of(const char* name, const PlanGrid& grid, int64_t tokens,
                                           AttentionOver attention = AttentionOver::kDivided) {
  static const GpuRates gpu = *gpu_rates("h200");
  PlanLoad load;
  load.attention = attention;
  const Wires wires(grid, gpu, link_rates());
  return step_collectives(named_plan_shape(name), wires, grid, load, {tokens, tokens});
}

TEST(PlanTraffic, OneRankSendsNothing) {
  EXPECT_TRUE(collectives_of("deepseek-v3", {1, 1, 8}, 64).empty());
}

// Qwen3-235B at 4 tokens, two ranks: a stream of 4 x 4096 floats, 64 KiB, in one shot: 8 bytes for each float.
TEST(PlanTraffic, TensorParallelByHand) {
  const auto list = collectives_of("qwen3-235b-a22b", {2, 1, 8}, 4);
  ASSERT_EQ(list.size(), 6u);
  const PlanCollective* sum = find(list, "experts: sum");
  ASSERT_NE(sum, nullptr);
  EXPECT_EQ(sum->calls, 94);
  EXPECT_EQ(sum->sent, 4 * 4096 * 8);
  EXPECT_STREQ(sum->method, "one-shot");
  EXPECT_EQ(find(list, "attention: sum")->sent, 4 * 4096 * 8);
  EXPECT_EQ(find(list, "embedding: sum")->calls, 1);
  // 32 routes and 4 rows: one chunk of 512 words each.
  EXPECT_EQ(find(list, "experts: scales")->sent, 512 * 8);
  EXPECT_EQ(find(list, "attention: scales")->sent, 512 * 8);
  EXPECT_EQ(find(list, "head: logits")->sent, 4 * 151936 / 2 * 4);
}

// 4,096 tokens: 64 MiB. Two ranks leave the sum to the library; its maxima, and sums of more ranks, do not.
TEST(PlanTraffic, LargeVectorsGoInSlices) {
  const double bytes = 4096.0 * 4096 * 4;
  const auto two = collectives_of("qwen3-235b-a22b", {2, 1, 8}, 4096);
  EXPECT_STREQ(find(two, "experts: sum")->method, "all_reduce");
  EXPECT_EQ(find(two, "experts: sum")->sent, bytes);
  EXPECT_EQ(find(two, "experts: sum")->basis, Basis::kMeasured);
  EXPECT_DOUBLE_EQ(find(two, "experts: sum")->us, 256) << "a measured point";
  EXPECT_STREQ(find(two, "experts: scales")->method, "one-shot") << "4096 * 8 floats are 128 KiB";
  const auto four = collectives_of("qwen3-235b-a22b", {4, 1, 8}, 4096);
  EXPECT_STREQ(find(four, "experts: sum")->method, "exchange + all_gather");
  EXPECT_EQ(find(four, "experts: sum")->sent, 2 * bytes * 3 / 4);
  EXPECT_EQ(find(four, "experts: sum")->outside, 0);
  const auto hosts = collectives_of("qwen3-235b-a22b", {16, 1, 8}, 4096);
  EXPECT_EQ(find(hosts, "experts: sum")->outside, 2 * bytes * 15 / 16 * 8 / 15);
  EXPECT_EQ(find(hosts, "experts: sum")->basis, Basis::kAssumed);
}

// DeepSeek-V3 over 8 groups, 64 tokens a group: each token goes to a share of the 7 others, each route comes back.
TEST(PlanTraffic, ExpertParallelByHand) {
  const auto list = collectives_of("deepseek-v3", {1, 8, 8}, 512);
  ASSERT_EQ(list.size(), 3u);
  double none = 1;  // of 8 choices among 256 on a rank with 32
  for (int i = 0; i < 8; ++i) none *= (224.0 - i) / (256.0 - i);
  moe::RouterRule rule;
  rule.num_experts = 256;
  rule.top_k = 8;
  const double imbalance = rank_load(rule, 8, 512).imbalance();
  const double routes = 64 * 8 * imbalance * 7 / 8;
  EXPECT_NEAR(find(list, "experts: dispatch")->sent, 64 * imbalance * 7 * (1 - none) * (7168 + 4) + routes * 8, 1);
  EXPECT_NEAR(find(list, "experts: return")->sent, routes * 7168 * 2, 1);
  EXPECT_EQ(find(list, "experts: return")->calls, 58) << "three layers are dense";
  EXPECT_EQ(find(list, "experts: counts")->sent, 7 * 16);
  // In a grid partial rows travel as fp32; replicated attention gathers the outputs.
  const auto grid = collectives_of("deepseek-v3", {2, 4, 8}, 512);
  const double more = rank_load(rule, 4, 512).imbalance();
  EXPECT_NEAR(find(grid, "experts: return")->sent, 128 * 8 * more * 3 / 4 * 7168 * 4, 1);
  const auto replicated = collectives_of("deepseek-v3", {1, 8, 8}, 512, AttentionOver::kReplicated);
  EXPECT_EQ(find(replicated, "experts: rows of all tokens")->sent, 7 * 64 * 7168 * 2);
}

TEST(PlanTraffic, ScalesOfASharedExpertTravelWithTheOthers) {
  const auto list = collectives_of("deepseek-v3", {2, 1, 8}, 256);
  EXPECT_EQ(find(list, "shared: scales"), nullptr);
  EXPECT_EQ(find(list, "experts: scales")->sent, 5 * 512 * 8) << "256 * 8 routes and 256 rows: 5 chunks of 512";
  EXPECT_EQ(find(list, "dense: sum")->calls, 3);
  EXPECT_EQ(find(list, "experts: sum")->calls, 58);
}

TEST(PlanTraffic, CurvesGoThroughTheirPoints) {
  for (const LinkKind kind : {LinkKind::kAllReduce, LinkKind::kAllGather, LinkKind::kAllToAll}) {
    const auto curve = link_curve(kind);
    for (const LinkPoint& p : curve) EXPECT_DOUBLE_EQ(curve_us(curve, p.bytes), p.us);
    EXPECT_EQ(curve_us(curve, 1), curve.front().us);
    EXPECT_DOUBLE_EQ(curve_us(curve, 2 * curve.back().bytes), 2 * curve.back().us);
    for (size_t i = 1; i < curve.size(); ++i) {
      const double between = curve_us(curve, (curve[i - 1].bytes + curve[i].bytes) / 2);
      EXPECT_GE(between, std::min(curve[i - 1].us, curve[i].us));
      EXPECT_LE(between, std::max(curve[i - 1].us, curve[i].us));
    }
  }
}

TEST(PlanTraffic, EveryNumberSaysWhereItIsFrom) {
  for (const char* name : gpu_names()) {
    for (const Rate& rate : gpu_rates(name)->all()) {
      EXPECT_GT(rate.value, 0) << rate.name;
      EXPECT_STRNE(rate.source, "") << rate.name;
    }
  }
  for (const Rate& rate : link_rates().all()) EXPECT_GT(rate.value, 0) << rate.name;
  EXPECT_EQ(link_rates().host_bandwidth.basis, Basis::kAssumed);
  EXPECT_FALSE(gpu_rates("a100"));
}

}  // namespace
}  // namespace quadrille::plan
