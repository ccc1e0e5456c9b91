// SPDX-License-Identifier: Apache-2.0
// Properties of the plan that together leave one answer: every route has one slot in its expert's range, in route
// order.
#include "moe/plan.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace quadrille::moe {
namespace {

void check_plan(const std::vector<int32_t>& ids, int64_t tokens, int64_t top_k, int64_t experts, const Plan& plan) {
  ASSERT_EQ(plan.num_experts(), experts);
  ASSERT_EQ(plan.offsets.front(), 0);
  ASSERT_EQ(static_cast<int64_t>(plan.slot_of_route.size()), tokens * top_k);
  ASSERT_EQ(static_cast<int64_t>(plan.token_of_slot.size()), plan.num_slots());
  ASSERT_EQ(static_cast<int64_t>(plan.route_of_slot.size()), plan.num_slots());
  std::vector<int64_t> count(experts, 0);
  std::set<int32_t> slots;
  for (int64_t route = 0; route < tokens * top_k; ++route) {
    const int32_t slot = plan.slot_of_route[route];
    if (ids[route] < 0) {
      ASSERT_EQ(slot, -1);
      continue;
    }
    ++count[ids[route]];
    ASSERT_TRUE(slots.insert(slot).second) << "two routes share slot " << slot;
    ASSERT_GE(slot, plan.offsets[ids[route]]);
    ASSERT_LT(slot, plan.offsets[ids[route] + 1]);
    ASSERT_EQ(plan.route_of_slot[slot], route);
    ASSERT_EQ(plan.token_of_slot[slot], route / top_k);
  }
  ASSERT_EQ(static_cast<int64_t>(slots.size()), plan.num_slots());
  for (int64_t e = 0; e < experts; ++e) {
    ASSERT_EQ(plan.offsets[e + 1] - plan.offsets[e], count[e]);
    for (int64_t s = plan.offsets[e] + 1; s < plan.offsets[e + 1]; ++s) {
      ASSERT_LT(plan.route_of_slot[s - 1], plan.route_of_slot[s]) << "inside an expert in route order";
    }
  }
}

TEST(Plan, HoldsItsPropertiesForAnyCounts) {
  std::mt19937 random(5);
  Plan plan;  // reused: nothing of an earlier plan may stay
  for (const int64_t experts : {1, 2, 7, 60, 128, 1000}) {
    for (const int64_t top_k : {1, 2, 8}) {
      for (const int64_t tokens : {0, 1, 3, 64, 257}) {
        std::vector<int32_t> ids(tokens * top_k);
        std::uniform_int_distribution<int32_t> any(-1, static_cast<int32_t>(experts) - 1);
        for (int32_t& id : ids) id = any(random);
        ASSERT_TRUE(build_plan(ids, tokens, top_k, experts, &plan).ok());
        check_plan(ids, tokens, top_k, experts, plan);
      }
    }
  }
}

TEST(Plan, AllTokensToOneExpertOfSixty) {
  const std::vector<int32_t> ids(40, 59);
  Plan plan;
  ASSERT_TRUE(build_plan(ids, 40, 1, 60, &plan).ok());
  check_plan(ids, 40, 1, 60, plan);
  EXPECT_EQ(plan.offsets[59], 0);
}

TEST(Plan, SmallCaseByHand) {
  Plan plan;
  ASSERT_TRUE(build_plan(std::vector<int32_t>{2, 0, -1, 2, 0, 1}, 3, 2, 3, &plan).ok());
  EXPECT_EQ(plan.offsets, (std::vector<int64_t>{0, 2, 3, 5}));
  EXPECT_EQ(plan.slot_of_route, (std::vector<int32_t>{3, 0, -1, 4, 1, 2}));
  EXPECT_EQ(plan.token_of_slot, (std::vector<int32_t>{0, 2, 2, 0, 1}));
  EXPECT_EQ(plan.route_of_slot, (std::vector<int32_t>{1, 4, 5, 0, 3}));
}

TEST(Plan, IdsOutsideAreErrorsThatSayWhere) {
  Plan plan;
  for (const int32_t bad : {60, -2, 1 << 30}) {
    const Status status = build_plan(std::vector<int32_t>{0, 1, 2, bad}, 2, 2, 60, &plan);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(status.error().message.find("token 1, choice 1"), std::string::npos) << status.error().message;
    EXPECT_NE(status.error().message.find("0 to 59"), std::string::npos) << status.error().message;
  }
}

}  // namespace
}  // namespace quadrille::moe
