// SPDX-License-Identifier: Apache-2.0
// route_and_plan against the calls that it stands for (router_logits, route_tokens, plan_routes, each
// compared with the CPU elsewhere): equal bits for every rule, shape, map and count of tokens; the word of arrivals
// back at zero; the same from a graph and with two launches in flight.
#include "device/route_case.h"

namespace quadrille::testing::routing {
namespace {

class RouteAndPlanTest : public TableTest {
 protected:
  void check(const Case& c) {
    SCOPED_TRACE(name_of(c));
    ASSERT_TRUE(kernels::fits_route_and_plan(c.tokens, c.rule.num_experts, c.rule.top_k, c.k));
    must(moe::check_router_rule(c.rule));
    Launch launch(c, *table_, stream(), 11);
    launch.poison();
    launch.one_by_one();
    const Outcome expected = launch.outcome();
    launch.poison();
    launch.fused(stream());
    expect_equal(launch.outcome(), expected, c);
    EXPECT_TRUE(launch.no_arrivals());
    EXPECT_EQ(launch.harmed(), "");
  }
};

TEST_F(RouteAndPlanTest, EqualsItsStepsForEveryShape) {
  uint32_t turn = 0;
  for (const int64_t tokens : {1, 2, 3, 4, 5, 8, 9, 17, 63, 64}) {
    for (const int64_t experts : {1, 7, 8, 60, 128, 130, 257, 512}) {
      for (const int64_t k : {8, 40, 2048}) {
        Case c;
        c.tokens = tokens;
        c.k = k;
        c.rule = rule_of(static_cast<Scoring>(turn % 3), experts, std::min<int64_t>(experts, turn % 2 == 0 ? 8 : 3));
        c.rule.renormalise = turn % 4 == 1 && c.rule.scoring != Scoring::kSoftmaxAfterTopK;
        c.tile_tokens = turn % 5 == 0 ? 16 : 8;
        c.has_bias = turn % 3 == 2;
        c.has_map = turn % 7 == 3;
        ++turn;
        check(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(RouteAndPlanTest, EqualsItsStepsForLongRowsAndEveryRule) {
  for (const int64_t tokens : {1, 4, 6, 64}) {
    for (const int64_t k : {2880, 6152, 7168, 8192}) {
      Case c;
      c.tokens = tokens;
      c.k = k;
      c.rule = rule_of(Scoring::kSoftmaxBeforeTopK, 64, 8);
      check(c);
      if (HasFailure()) return;
    }
    for (const Scoring scoring : {Scoring::kSigmoid, Scoring::kSoftmaxBeforeTopK, Scoring::kSoftmaxAfterTopK}) {
      for (const RouterRule& rule : {rule_of(scoring, 256, 8, 8, 4), rule_of(scoring, 160, 6, 8, 3),
                                     rule_of(scoring, 8, 3, 4, 2), rule_of(scoring, 400, 32, 40, 35)}) {
        Case c;
        c.tokens = tokens;
        c.k = 512;
        c.rule = rule;
        c.rule.routed_scaling = 2.5f;
        c.rule.renormalise = scoring != Scoring::kSoftmaxAfterTopK;
        c.rule.renorm_epsilon = c.rule.renormalise ? 1e-20f : 0.0f;
        c.has_bias = scoring == Scoring::kSigmoid;
        check(c);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(RouteAndPlanTest, TiesAndNonfiniteRows) {
  for (const int64_t tokens : {1, 2, 4, 7, 40}) {
    for (const Scoring scoring : {Scoring::kSigmoid, Scoring::kSoftmaxBeforeTopK, Scoring::kSoftmaxAfterTopK}) {
      Case c;
      c.tokens = tokens;
      c.k = 256;
      c.rule = rule_of(scoring, 130, 8);
      c.ties = true;
      check(c);
      c.special = true;
      check(c);
      if (HasFailure()) return;
    }
  }
}

TEST_F(RouteAndPlanTest, AHundredReplaysOfAGraph) {
  for (const int64_t tokens : {1, 3, 64}) {
    const Case c = decode_case(tokens);
    SCOPED_TRACE(name_of(c));
    Launch launch(c, *table_, stream(), 5);
    launch.poison();
    launch.one_by_one();
    const Outcome expected = launch.outcome();
    launch.fused(stream());  // loads what the capture needs
    // Three in a row: each follows one that may still run.
    const device::Graph graph = must(device::Graph::capture(stream(), [&] {
      for (int i = 0; i < 3; ++i) launch.fused(stream());
      return Status();
    }));
    for (int replay = 0; replay < 100; ++replay) {
      if (replay % 10 == 0) launch.poison();
      must(graph.launch(stream()));
      if (replay % 10 != 9) continue;
      expect_equal(launch.outcome(), expected, c);
      EXPECT_TRUE(launch.no_arrivals());
      if (HasFailure()) return;
    }
  }
}

TEST_F(RouteAndPlanTest, TwoLaunchesInFlightHaveTheirOwnWords) {
  const device::OwnedStream other = must(device::OwnedStream::create());
  const Case c = decode_case(64);
  Launch first(c, *table_, stream(), 5), second(c, *table_, other.get(), 6);
  Outcome expected[2];
  Launch* const both[2] = {&first, &second};
  for (size_t i = 0; i < 2; ++i) {
    both[i]->poison();
    both[i]->one_by_one();
    expected[i] = both[i]->outcome();
    both[i]->poison();
  }
  must(device::synchronize(stream()));
  must(device::synchronize(other.get()));
  for (int round = 0; round < 200; ++round) {
    first.fused(stream());
    second.fused(other.get());
  }
  for (size_t i = 0; i < 2; ++i) {
    expect_equal(both[i]->outcome(), expected[i], c);
    EXPECT_TRUE(both[i]->no_arrivals());
  }
}

}  // namespace
}  // namespace quadrille::testing::routing
