// SPDX-License-Identifier: Apache-2.0
#include "parallel/ordered_reduce.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "numerics/rank_order.h"

namespace quadrille::parallel {
namespace {

using numerics::bits_of;
using numerics::float_of;
using numerics::max_rank;

std::vector<float> reduce(const std::vector<std::vector<float>>& ranks,
                          void (*function)(std::span<const std::byte* const>, size_t, size_t, float*)) {
  std::vector<const std::byte*> parts;
  for (const auto& rank : ranks) parts.push_back(reinterpret_cast<const std::byte*>(rank.data()));
  std::vector<float> out(ranks[0].size());
  function(parts, 0, out.size(), out.data());
  return out;
}

TEST(OrderedReduce, AddsInRankOrder) {
  // (2^24 + 1) + 1 = 2^24, 2^24 + (1 + 1) = 2^24 + 2: the order shows.
  const float big = 16777216.0f;
  EXPECT_EQ(reduce({{big}, {1}, {1}}, sum_in_rank_order)[0], big);
  EXPECT_EQ(reduce({{1}, {1}, {big}}, sum_in_rank_order)[0], big + 2);
}

TEST(OrderedReduce, NanComesOutCanonical) {
  const float quiet = float_of(0xffc12345u), signalling = float_of(0x7f800001u);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto& ranks : std::vector<std::vector<std::vector<float>>>{
           {{quiet}, {1}}, {{1}, {signalling}}, {{quiet}, {signalling}}, {{infinity}, {-infinity}}}) {
    EXPECT_EQ(bits_of(reduce(ranks, sum_in_rank_order)[0]), 0x7fffffffu);
  }
}

TEST(OrderedReduce, KeepsTheSignOfZeroAndSubnormals) {
  EXPECT_EQ(bits_of(reduce({{-0.0f}, {-0.0f}}, sum_in_rank_order)[0]), 0x80000000u);
  EXPECT_EQ(bits_of(reduce({{-0.0f}, {0.0f}}, sum_in_rank_order)[0]), 0u);
  EXPECT_EQ(bits_of(reduce({{float_of(1)}, {float_of(1)}}, sum_in_rank_order)[0]), 2u);
}

TEST(OrderedReduce, MaxIgnoresNanAndPrefersPlusZero) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(max_rank(nan, -3.0f), -3.0f);
  EXPECT_EQ(max_rank(-3.0f, nan), -3.0f);
  EXPECT_EQ(bits_of(max_rank(0.0f, -0.0f)), 0u);
  EXPECT_EQ(bits_of(max_rank(-0.0f, 0.0f)), 0u);
  EXPECT_EQ(bits_of(reduce({{nan}, {float_of(0xffc00001u)}}, max_in_rank_order)[0]), 0x7fffffffu);
  EXPECT_EQ(reduce({{1}, {nan}, {5}, {2}}, max_in_rank_order)[0], 5.0f);
}

TEST(OrderedReduce, ReadsPartsAtAnyAddress) {
  std::vector<std::byte> memory(3 * 4001 + 8);
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  std::vector<const std::byte*> parts;
  for (size_t r = 0; r < 3; ++r) {
    std::memcpy(memory.data() + r * 4001, values.data(), 4000);
    parts.push_back(memory.data() + r * 4001);
  }
  std::vector<float> out(990);
  sum_in_rank_order(parts, 10, 990, out.data());
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], 3.0f * static_cast<float>(i + 10));
}

TEST(OrderedReduce, SlicesCoverEverything) {
  for (const size_t count : {0u, 1u, 15u, 16u, 17u, 100u, 128u, 1000u, 4097u}) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      const auto offset = even_slices(count, ranks);
      ASSERT_EQ(offset.size(), static_cast<size_t>(ranks) + 1);
      EXPECT_EQ(offset.front(), 0u);
      EXPECT_EQ(offset.back(), count);
      size_t least = count, most = 0;
      for (size_t r = 0; r + 1 < offset.size(); ++r) {
        ASSERT_LE(offset[r], offset[r + 1]);
        least = std::min(least, offset[r + 1] - offset[r]);
        most = std::max(most, offset[r + 1] - offset[r]);
      }
      EXPECT_LE(most - least, 32u) << count << " over " << ranks;
    }
  }
}

}  // namespace
}  // namespace quadrille::parallel
