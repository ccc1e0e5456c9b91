// SPDX-License-Identifier: Apache-2.0
// Placements by enumeration: every expert has a place for every number of ranks, the tables are each other's inverse,
// and adding and removing holders leaves every other slot as it is.
#include "moe/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace quadrille::moe {
namespace {

Placement must(Result<Placement> placement) {
  EXPECT_TRUE(placement.ok()) << (placement.ok() ? "" : placement.error().message);
  return std::move(*placement);
}

// What holds of every placement.
void check_tables(const Placement& p) {
  std::vector<std::vector<int32_t>> holders(static_cast<size_t>(p.num_experts()));
  for (int rank = 0; rank < p.num_ranks(); ++rank) {
    int64_t held = 0;
    ASSERT_EQ(static_cast<int64_t>(p.slot_of_expert(rank).size()), p.num_experts());
    for (int64_t slot = 0; slot < p.num_slots(rank); ++slot) {
      const int32_t expert = p.slots(rank)[slot];
      if (expert == Placement::kFree) continue;
      ++held;
      ASSERT_EQ(p.slot(rank, expert), slot);
      holders[static_cast<size_t>(expert)].push_back(rank);
    }
    ASSERT_EQ(p.num_held(rank), held);
    ASSERT_EQ(std::count_if(p.slot_of_expert(rank).begin(), p.slot_of_expert(rank).end(), [](int s) { return s >= 0; }),
              held);
  }
  for (int64_t e = 0; e < p.num_experts(); ++e) {
    const std::vector<int32_t>& of_e = holders[static_cast<size_t>(e)];
    ASSERT_FALSE(of_e.empty()) << "expert " << e;
    ASSERT_TRUE(std::equal(of_e.begin(), of_e.end(), p.holders(e).begin(), p.holders(e).end())) << "expert " << e;
    for (int source = 0; source < p.num_ranks(); ++source) {
      const int serving = p.serving_rank(e, source);
      ASSERT_TRUE(p.holds(serving, e));
      ASSERT_EQ(serving, p.serving_ranks(source)[static_cast<size_t>(e)]);
      ASSERT_EQ(serving, p.holds(source, e) ? source : of_e[static_cast<size_t>(source) % of_e.size()]);
    }
  }
}

TEST(Placement, EvenOverEveryNumberOfRanks) {
  for (int64_t experts = 1; experts <= 24; ++experts) {
    for (int ranks = 1; ranks <= 30; ++ranks) {
      const Placement p = must(Placement::even(experts, ranks));
      check_tables(p);
      int32_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        ASSERT_GE(p.num_slots(rank), experts / ranks);
        ASSERT_LE(p.num_slots(rank), (experts + ranks - 1) / ranks);
        ASSERT_LE(p.num_slots(rank), rank > 0 ? p.num_slots(rank - 1) : experts);
        for (const int32_t expert : p.slots(rank)) ASSERT_EQ(expert, next++);
      }
      ASSERT_EQ(next, experts);
    }
  }
}

TEST(Placement, SixtyOverEight) {
  const Placement p = must(Placement::even(60, 8));
  check_tables(p);
  std::vector<int64_t> sizes;
  for (int rank = 0; rank < 8; ++rank) sizes.push_back(p.num_held(rank));
  EXPECT_EQ(sizes, (std::vector<int64_t>{8, 8, 8, 8, 7, 7, 7, 7}));
  EXPECT_EQ(p.serving_rank(59, 0), 7);
  EXPECT_EQ(p.slot(7, 59), 6);
}

TEST(Placement, UnevenWithReplicasAndEmptyRanks) {
  const Placement p = must(Placement::of(5, {{4, 0}, {}, {1, 2, 3, 0}, {0}}));
  check_tables(p);
  EXPECT_EQ(p.num_slots(1), 0);
  EXPECT_EQ(p.slot(2, 0), 3);
  // Expert 0: ranks 0, 2 and 3 serve themselves, rank 1 takes holder 1 of 3.
  EXPECT_EQ(p.serving_rank(0, 0), 0);
  EXPECT_EQ(p.serving_rank(0, 1), 2);
  EXPECT_EQ(p.serving_rank(0, 2), 2);
  EXPECT_EQ(p.serving_rank(0, 3), 3);
  for (int source = 0; source < 4; ++source) EXPECT_EQ(p.serving_rank(4, source), 0);
}

TEST(Placement, AddAndRemoveTouchNoOtherSlot) {
  Placement p = must(Placement::even(7, 3));
  std::mt19937 random(5);
  int changed = 0;
  for (int i = 0; i < 400; ++i) {
    const Placement before = p;
    const auto expert = static_cast<int64_t>(random() % 7);
    const auto rank = static_cast<int>(random() % 3);
    if (before.holds(rank, expert)) {
      const bool done = p.remove(expert, rank).ok();
      ASSERT_EQ(done, before.holders(expert).size() > 1);
      changed += done ? 1 : 0;
    } else {
      const auto slot = p.add(expert, rank);
      ASSERT_TRUE(slot);
      ASSERT_EQ(p.slot(rank, expert), *slot);
      const auto slots = before.slots(rank);
      ASSERT_EQ(*slot, std::find(slots.begin(), slots.end(), Placement::kFree) - slots.begin()) << "the lowest free";
      ++changed;
    }
    check_tables(p);
    for (int r = 0; r < 3; ++r) {
      for (int64_t e = 0; e < 7; ++e) {
        ASSERT_TRUE((r == rank && e == expert) || p.slot(r, e) == before.slot(r, e));
      }
    }
  }
  EXPECT_GT(changed, 100);
}

TEST(Placement, WhatIsNoPlacementIsRefused) {
  const auto message = [](const auto& result) {
    EXPECT_FALSE(result.ok());
    if (result.ok()) return std::string();
    EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
    return result.error().message;
  };
  EXPECT_NE(message(Placement::even(0, 2)).find("0 experts over 2"), std::string::npos);
  EXPECT_NE(message(Placement::even(4, 0)).find("over 0"), std::string::npos);
  EXPECT_NE(message(Placement::even(4, Placement::kMaxRanks + 1)).find("1..1024"), std::string::npos);
  EXPECT_NE(message(Placement::of(3, {{0, 1}, {1}})).find("none of 2 ranks holds expert 2"), std::string::npos);
  EXPECT_NE(message(Placement::of(3, {{0, 1, 0}, {2}})).find("rank 0 holds expert 0 already"), std::string::npos);
  EXPECT_NE(message(Placement::of(3, {{0, 1, 3}, {2}})).find("legal are the experts 0..2"), std::string::npos);
  EXPECT_NE(message(Placement::of(3, {})).find("over 0"), std::string::npos);
  Placement p = must(Placement::even(3, 2));
  const Placement before = p;
  EXPECT_NE(message(p.add(0, 0)).find("already, in slot 0"), std::string::npos);
  EXPECT_NE(message(p.add(0, 2)).find("ranks 0..1"), std::string::npos);
  EXPECT_NE(message(p.remove(0, 1)).find("does not hold it"), std::string::npos);
  EXPECT_NE(message(p.remove(0, 0)).find("no other rank"), std::string::npos);
  EXPECT_EQ(p, before);
}

}  // namespace
}  // namespace quadrille::moe
