// SPDX-License-Identifier: Apache-2.0
// The closed forms against routes that are drawn, with a fixed seed.
#include "plan/routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace quadrille::plan {
namespace {

moe::RouterRule rule_of(int64_t experts, int64_t top_k) {
  moe::RouterRule rule;
  rule.num_experts = experts;
  rule.top_k = top_k;
  return rule;
}

// Rows of every expert after `tokens` tokens chose top_k different ones.
std::vector<int64_t> draw_rows(const moe::RouterRule& rule, int64_t tokens, std::mt19937_64* random) {
  std::vector<int64_t> rows(static_cast<size_t>(rule.num_experts)), order(rows.size());
  for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int64_t>(e);
  for (int64_t t = 0; t < tokens; ++t) {
    for (size_t k = 0; k < static_cast<size_t>(rule.top_k); ++k) {
      const size_t other = k + (*random)() % (order.size() - k);
      std::swap(order[k], order[other]);
      ++rows[static_cast<size_t>(order[k])];
    }
  }
  return rows;
}

struct Mean {
  double sum = 0, squares = 0;
  int count = 0;
  void add(double value) {
    sum += value;
    squares += value * value;
    ++count;
  }
  double mean() const { return sum / count; }
  double error() const { return std::sqrt(std::max(0.0, squares / count - mean() * mean()) / (count - 1)); }
};

TEST(PlanRouting, ExpertsHitAndTilesAreThoseOfDrawnRoutes) {
  std::mt19937_64 random(20261122);
  for (const auto& [experts, top_k, tokens] :
       {std::array<int64_t, 3>{128, 8, 1}, {128, 8, 16}, {128, 8, 300}, {8, 2, 5}, {256, 8, 700}, {64, 6, 64}}) {
    const moe::RouterRule rule = rule_of(experts, top_k);
    const UniformRouting routing = UniformRouting::of(rule, static_cast<double>(tokens));
    Mean hit, tiles;
    for (int round = 0; round < 60; ++round) {
      const auto rows = draw_rows(rule, tokens, &random);
      double hits = 0, needed = 0;
      for (const int64_t r : rows) {
        hits += r > 0;
        needed += static_cast<double>((r + 15) / 16);
      }
      hit.add(hits);
      tiles.add(needed);
    }
    const auto e = static_cast<double>(experts);
    // Five standard errors of the mean; that of rare misses may not show in the sample.
    const double missed = e * routing.share_hit() * (1 - routing.share_hit());
    EXPECT_NEAR(e * routing.share_hit(), hit.mean(), 5 * std::max(hit.error(), std::sqrt(missed / 60)) + 1e-9 * e)
        << experts << " " << tokens;
    EXPECT_NEAR(e * routing.tiles_per_expert(16), tiles.mean(), 5 * tiles.error() + 1e-9 * e)
        << experts << " " << tokens;
  }
}

TEST(PlanRouting, EdgesAreExact) {
  EXPECT_EQ(UniformRouting::of(rule_of(8, 8), 5).tiles_per_expert(2), 3);
  EXPECT_EQ(UniformRouting::of(rule_of(8, 8), 5).share_hit(), 1);
  EXPECT_EQ(UniformRouting::of(rule_of(8, 2), 0).share_hit(), 0);
  EXPECT_DOUBLE_EQ(UniformRouting::of(rule_of(8, 2), 1).share_hit(), 0.25);
  EXPECT_NEAR(UniformRouting::of(rule_of(8, 2), 1).tiles_per_expert(16), 0.25, 1e-12);
  // C(6, 2) / C(8, 2) = 15 / 28 of the pairs miss a rank of two experts.
  EXPECT_NEAR(share_of_ranks_hit(rule_of(8, 2), 4), 1 - 15.0 / 28, 1e-12);
  EXPECT_EQ(share_of_ranks_hit(rule_of(8, 2), 1), 1);
}

TEST(PlanRouting, LargestOfNormalNumbers) {
  EXPECT_EQ(expected_max_normal(1), 0);
  EXPECT_NEAR(expected_max_normal(2), 1 / std::sqrt(std::acos(-1.0)), 1e-5);    // 1 / sqrt(pi)
  EXPECT_NEAR(expected_max_normal(3), 1.5 / std::sqrt(std::acos(-1.0)), 1e-5);  // 3 / (2 sqrt(pi))
}

TEST(PlanRouting, TheBusiestRankIsThatOfDrawnRoutes) {
  std::mt19937_64 random(7);
  for (const auto& [experts, top_k, ep, tokens] :
       {std::array<int64_t, 4>{128, 8, 8, 256}, {256, 8, 32, 512}, {128, 4, 2, 1000}, {256, 8, 64, 256}}) {
    const moe::RouterRule rule = rule_of(experts, top_k);
    const RankLoad load = rank_load(rule, static_cast<int>(ep), tokens);
    const int64_t held = experts / ep;
    Mean busiest;
    for (int round = 0; round < 60; ++round) {
      const auto rows = draw_rows(rule, tokens, &random);
      int64_t most = 0;
      for (int64_t r = 0; r < ep; ++r) {
        int64_t sum = 0;
        for (int64_t e = 0; e < held; ++e) sum += rows[static_cast<size_t>(r * held + e)];
        most = std::max(most, sum);
      }
      busiest.add(static_cast<double>(most));
    }
    EXPECT_DOUBLE_EQ(load.mean, static_cast<double>(tokens * top_k) / static_cast<double>(ep));
    // The sums are not quite normal: their skewness moves the maximum by a small part of its distance from the mean.
    const double skew = 0.1 * (load.busiest - load.mean);
    EXPECT_NEAR(load.busiest, busiest.mean(), 5 * busiest.error() + skew) << experts << " over " << ep;
  }
}

TEST(PlanRouting, FewTokensStayWithinWhatTheyCanSend) {
  for (const int ep : {2, 8, 64}) {
    for (const int64_t tokens : {1, 2, 3}) {
      const RankLoad load = rank_load(rule_of(128, 8), ep, tokens);
      EXPECT_LE(load.busiest, static_cast<double>(tokens * std::min(8, 128 / ep)));
      EXPECT_GE(load.busiest, std::ceil(static_cast<double>(tokens * 8) / ep));
    }
  }
}

}  // namespace
}  // namespace quadrille::plan
