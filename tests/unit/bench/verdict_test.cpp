// SPDX-License-Identifier: Apache-2.0
// Floors, bounds, falls and verdicts, each against numbers worked out by hand.
#include "bench/verdict.h"

#include <gtest/gtest.h>

#include <vector>

namespace quadrille::bench {
namespace {

TEST(Verdict, TheFloorIsTheLongestOfItsParts) {
  // 8 bytes at 4 a second take 2 s; 30 operations at 10 take 3 s; 12 weights at 3 take 4 s.
  const Work work{8, 30, 12};
  EXPECT_EQ(floor_seconds(work, {4, 10, 0}), 3);
  EXPECT_EQ(bound_of(work, {4, 10, 0}), Bound::kDot);
  EXPECT_EQ(floor_seconds(work, {4, 10, 3}), 4);
  EXPECT_EQ(bound_of(work, {4, 10, 3}), Bound::kDecode);
  EXPECT_EQ(floor_seconds(work, {1, 10, 3}), 8);
  EXPECT_EQ(bound_of(work, {1, 10, 3}), Bound::kRead);
  EXPECT_EQ(floor_fraction(work, {4, 10, 0}, 6), 0.5);
}

TEST(Verdict, WorkWithoutWeightsIsNotBoundByDecoding) {
  EXPECT_EQ(floor_seconds({8, 30, 0}, {4, 10, 1e-3}), 3);
  EXPECT_EQ(bound_of({8, 30, 0}, {4, 10, 1e-3}), Bound::kDot);
}

TEST(Verdict, EqualPartsCountAsRead) {
  EXPECT_EQ(bound_of({8, 20, 0}, {4, 10, 0}), Bound::kRead);
}

TEST(Verdict, TheLargestFallIsRelativeAndNamesItsStep) {
  const std::vector<double> fractions = {0.80, 0.75, 0.90, 0.60, 0.55};
  const auto fall = largest_fall(fractions);
  ASSERT_TRUE(fall);
  EXPECT_EQ(fall->before, 2u);
  EXPECT_DOUBLE_EQ(fall->share, 1 - 0.60 / 0.90);
  // In points 0.5 to 0.4 is less than 0.9 to 0.78, as a share more.
  const auto relative = largest_fall(std::vector<double>{0.90, 0.78, 0.50, 0.50, 0.20});
  ASSERT_TRUE(relative);
  EXPECT_EQ(relative->before, 3u);
}

TEST(Verdict, NoFallWhereNothingGoesDown) {
  EXPECT_FALSE(largest_fall(std::vector<double>{}));
  EXPECT_FALSE(largest_fall(std::vector<double>{0.5}));
  EXPECT_FALSE(largest_fall(std::vector<double>{0.5, 0.5, 0.7}));
}

TEST(Verdict, ARequirementHasADirection) {
  EXPECT_TRUE((Requirement{"", 0.8, 0.8, false}).passes());
  EXPECT_FALSE((Requirement{"", 0.8, 0.79, false}).passes());
  EXPECT_TRUE((Requirement{"", 1.1, 1.1, true}).passes());
  EXPECT_FALSE((Requirement{"", 1.1, 1.11, true}).passes());
}

TEST(Verdict, TargetsOfRowsByTable) {
  using Of = RowTarget::Of;
  const auto is = [](const char* table, int64_t rows, Of of, double fraction) {
    const auto target = row_target(table, rows);
    return target && target->of == of && target->fraction == fraction;
  };
  for (const char* table : {"avx512", "vdpbf16"}) {
    EXPECT_TRUE(is(table, 1, Of::kRead, 0.80)) << table;
    EXPECT_TRUE(is(table, 4, Of::kFloor, 0.60)) << table;
    for (const int64_t rows : {64, 96, 128}) EXPECT_TRUE(is(table, rows, Of::kDot, 0.85)) << table << rows;
    EXPECT_FALSE(row_target(table, 48)) << table;
  }
  EXPECT_TRUE(is("amx", 1, Of::kRead, 0.80));
  EXPECT_TRUE(is("amx", 128, Of::kDot, 0.45));
  EXPECT_FALSE(row_target("amx", 64));
  EXPECT_TRUE(is("avx2", 1, Of::kFloor, 0.70));
  EXPECT_FALSE(row_target("avx2", 64));
  EXPECT_FALSE(row_target("generic", 1));
}

TEST(Verdict, TargetsOfLayersAndModels) {
  EXPECT_EQ(layer_target(DotUnit::kAvx512Fma, 1), 0.80);
  EXPECT_EQ(layer_target(DotUnit::kAvx512Fma, 4), 0.80);
  EXPECT_EQ(layer_target(DotUnit::kVdpbf16, 16), 0.75);
  EXPECT_EQ(layer_target(DotUnit::kAvx512Fma, 64), 0.70);
  EXPECT_EQ(layer_target(DotUnit::kAvx512Fma, 512), 0.75);
  EXPECT_EQ(layer_target(DotUnit::kAmxBf16, 512), 0.30);
  EXPECT_FALSE(layer_target(DotUnit::kAvx2Fma, 1));
  EXPECT_EQ(decode_target(1), 0.75);
  EXPECT_EQ(decode_target(2048), 0.65);
  EXPECT_EQ(prefill_target(DotUnit::kAvx512Fma), 0.60);
  EXPECT_EQ(prefill_target(DotUnit::kAmxBf16), 0.15);
}

}  // namespace
}  // namespace quadrille::bench
