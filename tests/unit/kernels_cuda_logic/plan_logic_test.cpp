// SPDX-License-Identifier: Apache-2.0
// Both forms of the plan kernels' counting sort, run with loops in place of threads over the functions that the kernels
// call, against moe::build_plan.
#include "kernels/cuda/moe/plan_logic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "moe/plan.h"

namespace quadrille::kernels::cuda {
namespace {

struct Sorted {
  std::vector<int32_t> offsets, slot_of_route, route_of_slot;
};

int lower_lanes(const std::vector<int32_t>& expert, int64_t route) {
  int lower = 0;
  for (int64_t r = route / kWarp * kWarp; r < route; ++r) lower += expert[r] == expert[route] ? 1 : 0;
  return lower;
}

void place(Sorted* sorted, int64_t route, int32_t slot) {
  sorted->slot_of_route[route] = slot;
  if (slot >= 0) sorted->route_of_slot.at(slot) = static_cast<int32_t>(route);
}

std::vector<int32_t> first_slots(const std::vector<int32_t>& totals) {
  std::vector<int32_t> offsets(totals.size() + 1, 0);
  for (size_t e = 0; e < totals.size(); ++e) offsets[e + 1] = offsets[e] + totals[e];
  return offsets;
}

// plan_small_kernel: segments count, experts scan their column, segments place.
Sorted sort_small(const std::vector<int32_t>& expert, int64_t experts) {
  const auto routes = static_cast<int64_t>(expert.size());
  const SmallPlanShape shape = small_plan_shape(routes, experts);
  EXPECT_LE(shape.threads, kSmallPlanWarps * kWarp);
  EXPECT_GE(shape.threads, experts);
  EXPECT_LE(shape.steps, kSmallPlanSteps);
  EXPECT_GE(int64_t{shape.segments} * shape.steps * kWarp, routes);
  const int64_t of_segment = int64_t{shape.steps} * kWarp;
  std::vector<uint16_t> counts(shape.segments * experts, 0);
  for (int64_t r = 0; r < routes; ++r) {
    if (expert[r] >= 0) ++counts.at(r / of_segment * experts + expert[r]);
  }
  std::vector<int32_t> totals(experts, 0);
  for (int64_t e = 0; e < experts; ++e) {
    for (int w = 0; w < shape.segments; ++w) {
      const int32_t here = counts[w * experts + e];
      counts[w * experts + e] = static_cast<uint16_t>(totals[e]);
      totals[e] += here;
    }
  }
  Sorted sorted{first_slots(totals), std::vector<int32_t>(routes), std::vector<int32_t>(routes, -1)};
  for (int64_t step = 0; step < routes; step += kWarp) {
    const int64_t end = std::min(routes, step + kWarp);
    uint16_t* own = &counts[step / of_segment * experts];
    for (int64_t r = step; r < end; ++r) {
      const int32_t e = expert[r];
      place(&sorted, r, e < 0 ? -1 : sorted.offsets[e] + own[e] + lower_lanes(expert, r));
    }
    for (int64_t r = step; r < end; ++r) {
      if (expert[r] >= 0) ++own[expert[r]];
    }
  }
  return sorted;
}

// count_kernel, scan_kernel, scatter_kernel.
Sorted sort_chunks(const std::vector<int32_t>& expert, int64_t experts) {
  const auto routes = static_cast<int64_t>(expert.size());
  const int64_t chunks = (routes + kPlanChunk - 1) / kPlanChunk;
  std::vector<int32_t> scratch(plan_scratch_ints(routes, experts), 0);
  for (int64_t r = 0; r < routes; ++r) {
    if (expert[r] >= 0) ++scratch.at(r / kPlanChunk * experts + expert[r]);
  }
  std::vector<int32_t> totals(experts, 0);
  const int64_t length = scan_segment_length(chunks);
  EXPECT_GE(length * kScanSegments, chunks);
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t c = 0; c < chunks; ++c) {
      const int32_t here = scratch[c * experts + e];
      scratch[c * experts + e] = totals[e];
      totals[e] += here;
    }
  }
  Sorted sorted{first_slots(totals), std::vector<int32_t>(routes, -1), std::vector<int32_t>(routes, -1)};
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = c * kPlanChunk, end = std::min(routes, begin + kPlanChunk);
    for (int64_t first = 0; first < experts; first += kPlanWindow) {
      std::vector<uint8_t> counts(kChunkWarps * kPlanWindow, 0);
      const auto here = [&](int64_t r) { return expert[r] >= first && expert[r] < first + kPlanWindow; };
      for (int64_t r = begin; r < end; ++r) {
        if (here(r)) ++counts.at((r - begin) / kWarp * kPlanWindow + expert[r] - first);
      }
      for (int64_t r = begin; r < end; ++r) {
        if (!here(r)) continue;
        const int32_t rank = rank_in_chunk(counts.data(), static_cast<int>((r - begin) / kWarp),
                                           static_cast<int>(expert[r] - first), lower_lanes(expert, r));
        place(&sorted, r, sorted.offsets[expert[r]] + scratch[c * experts + expert[r]] + rank);
      }
    }
  }
  return sorted;
}

void expect_plan(const Sorted& sorted, const moe::Plan& plan) {
  ASSERT_TRUE(std::equal(plan.offsets.begin(), plan.offsets.end(), sorted.offsets.begin(), sorted.offsets.end()));
  ASSERT_EQ(sorted.slot_of_route, plan.slot_of_route);
  const std::vector<int32_t> placed(sorted.route_of_slot.begin(), sorted.route_of_slot.begin() + plan.num_slots());
  ASSERT_EQ(placed, plan.route_of_slot);
}

TEST(PlanLogic, BothSortsEqualTheCpuPlan) {
  std::mt19937 random(11);
  for (const int64_t experts : {1, 7, 33, 512, 1000, 2500}) {
    for (const int64_t routes : {1, 31, 32, 33, 255, 257, 1024, 1025, 4000, 8192, 20000}) {
      for (const bool one_expert : {false, true}) {
        std::vector<int32_t> ids(routes);
        std::uniform_int_distribution<int32_t> any(-1, static_cast<int32_t>(experts) - 1);
        for (int32_t& id : ids) id = one_expert ? static_cast<int32_t>(experts) - 1 : any(random);
        moe::Plan plan;
        ASSERT_TRUE(moe::build_plan(ids, routes, 1, experts, &plan).ok());
        if (is_small_plan(routes, experts)) expect_plan(sort_small(ids, experts), plan);
        expect_plan(sort_chunks(ids, experts), plan);
      }
    }
  }
}

TEST(PlanLogic, TilesCoverEachRowOnceAndStayWithinTheBound) {
  std::mt19937 random(12);
  for (const int32_t tile_tokens : {1, 8, 16, 100, 256}) {
    std::vector<int32_t> rows = {0, 1, tile_tokens, tile_tokens + 1, 0, 3 * tile_tokens - 1, 1000};
    for (int i = 0; i < 50; ++i) rows.push_back(static_cast<int32_t>(random() % 40));
    int64_t all = 0, tiles = 0;
    for (size_t e = 0; e < rows.size(); ++e) {
      const auto first_row = static_cast<int32_t>(all);
      for (int32_t i = 0; i < tiles_of_rows(rows[e], tile_tokens); ++i) {
        const TokenTile tile =
            token_tile(static_cast<int32_t>(e), first_row, rows[e], static_cast<int32_t>(tiles), tile_tokens, i);
        EXPECT_EQ(tile.first_row, all);
        EXPECT_GE(tile.num_rows, 1);
        EXPECT_LE(tile.num_rows, tile_tokens);
        EXPECT_EQ(tile.num_tiles, tiles_of_rows(rows[e], tile_tokens));
        all += tile.num_rows;
      }
      EXPECT_EQ(all, first_row + rows[e]);
      tiles += tiles_of_rows(rows[e], tile_tokens);
    }
    EXPECT_LE(tiles, max_route_tiles(all, static_cast<int64_t>(rows.size()), tile_tokens));
  }
  EXPECT_EQ(tiles_of_rows(INT32_MAX, 1000), 2147484) << "no sum overflows";
}

TEST(PlanLogic, IdsAndCountsOutsideAreBad) {
  const std::vector<int32_t> map = {2, -1, 0, 3, -7};
  const auto expert = [&](int32_t id) { return local_expert(id, map.data(), 5, 3); };
  EXPECT_EQ(expert(0).expert, 2);
  EXPECT_FALSE(expert(0).bad);
  EXPECT_EQ(expert(1).expert, -1);
  EXPECT_FALSE(expert(1).bad) << "an expert elsewhere";
  EXPECT_FALSE(expert(-1).bad);
  for (const int32_t id : {3, 4, 5, -2, INT32_MIN, INT32_MAX}) {
    EXPECT_TRUE(expert(id).bad) << id;
    EXPECT_EQ(expert(id).expert, -1) << id;
  }
  EXPECT_TRUE(local_expert(3, nullptr, 0, 3).bad);
  EXPECT_EQ(local_expert(2, nullptr, 0, 3).expert, 2);
  EXPECT_EQ(masked_rows(5, 5).rows, 5);
  EXPECT_FALSE(masked_rows(5, 5).bad);
  EXPECT_EQ(masked_rows(6, 5).rows, 5);
  EXPECT_TRUE(masked_rows(6, 5).bad);
  EXPECT_EQ(masked_rows(-1, 5).rows, 0);
  EXPECT_TRUE(masked_rows(-1, 5).bad);
}

}  // namespace
}  // namespace quadrille::kernels::cuda
