// SPDX-License-Identifier: Apache-2.0
// Every layout map is a bijection: by enumeration, each place is met once, at() undoes offset(), and what is padding is
// told as padding.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "layout/bf16_lanes16.h"
#include "layout/kv_page.h"
#include "layout/w4_canonical.h"
#include "layout/w4_lanes16.h"
#include "layout/w4_vllm_reordered.h"

namespace quadrille::layout {
namespace {

// offset() over all (row, column) is injective into [0, places) and at() is its inverse; every other place is padding.
template <typename Map>
void expect_bijection(const Map& map, int64_t rows, int64_t columns, int64_t places) {
  std::vector<int> met(static_cast<size_t>(places), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t place = map.offset(row, column);
      ASSERT_GE(place, 0);
      ASSERT_LT(place, places);
      ++met[static_cast<size_t>(place)];
      ASSERT_EQ(map.at(place), (RowColumn{row, column})) << row << " " << column;
    }
  }
  int64_t padding = 0;
  for (int64_t place = 0; place < places; ++place) {
    ASSERT_LE(met[static_cast<size_t>(place)], 1) << place;
    if (met[static_cast<size_t>(place)] != 0) continue;
    ++padding;
    const RowColumn outside = map.at(place);
    ASSERT_TRUE(outside.n >= rows || outside.k >= columns) << place;
    // Padding has its own place, too: the map extends to the padded matrix.
    ASSERT_EQ(map.offset(outside.n, outside.k), place);
  }
  EXPECT_EQ(padding, places - rows * columns);
}

constexpr std::pair<int64_t, int64_t> kShapes[] = {{1, 8},    {8, 32},   {15, 40},  {16, 64},  {17, 128},
                                                   {24, 200}, {33, 256}, {48, 304}, {60, 1408}};

TEST(Layout, W4Canonical) {
  for (const auto& [n, k] : kShapes) expect_bijection(W4Canonical{n, k}, n, k, W4Canonical{n, k}.num_words() * 8);
  // A tail that fills no word.
  expect_bijection(W4Canonical{3, 13}, 3, 13, 3 * 16);
}

TEST(Layout, W4Lanes16) {
  for (const auto& [n, k] : kShapes) {
    const W4Lanes16 map{n, k};
    EXPECT_EQ(map.num_words(), (n + 15) / 16 * ((k + 31) / 32 * 4) * 16);
    expect_bijection(map, n, k, map.num_words() * 8);
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t column = 0; column < k; ++column) {
        // The form the kernels use: [n/16][k/8][16] words, nibble k % 8.
        const int64_t word = (row / 16 * (map.padded_k() / 8) + column / 8) * 16 + row % 16;
        ASSERT_EQ(map.word_index(row, column), word);
        ASSERT_EQ(map.offset(row, column), word * 8 + column % 8);
      }
    }
  }
}

TEST(Layout, ScaleLanes16) {
  for (const auto& [n, groups] : {std::pair<int64_t, int64_t>{1, 1}, {16, 3}, {17, 1}, {60, 11}}) {
    const ScaleLanes16 map{n, groups};
    expect_bijection(map, n, groups, map.size());
  }
  EXPECT_EQ(num_groups(256, 128), 2);
  EXPECT_EQ(num_groups(200, 64), 4);
  EXPECT_EQ(num_groups(4096, 0), 1);
}

TEST(Layout, Bf16Lanes16) {
  for (const auto& [n, k] : kShapes) expect_bijection(Bf16Lanes16{n, k}, n, k, Bf16Lanes16{n, k}.size());
  expect_bijection(Bf16Lanes16{5, 7}, 5, 7, 16 * 7);
}

TEST(Layout, KvPage) {
  for (const auto& [heads, dim] : {std::pair<int64_t, int64_t>{1, 1}, {2, 32}, {3, 80}, {8, 128}}) {
    const KvPage page{heads, dim};
    std::vector<int> keys(static_cast<size_t>(page.size()), 0), values = keys;
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t position = 0; position < kPagePositions; ++position) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t key = page.key_offset(head, position, d), value = page.value_offset(head, position, d);
          ++keys.at(static_cast<size_t>(key));
          ++values.at(static_cast<size_t>(value));
          ASSERT_EQ(page.key_at(key), (KvPlace{head, position, d}));
          ASSERT_EQ(page.value_at(value), (KvPlace{head, position, d}));
        }
      }
    }
    EXPECT_EQ(std::count(keys.begin(), keys.end(), 1), page.size());
    EXPECT_EQ(std::count(values.begin(), values.end(), 1), page.size());
  }
}

TEST(Layout, W4VllmReordered) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 32}, {16, 128}, {48, 32}, {80, 160}, {256, 512}}) {
    const W4VllmReordered map{n, k};
    expect_bijection(map, n, k, n * k);
  }
  // The measured bit rule, place by place of one tile.
  const W4VllmReordered tile{16, 32};
  for (int64_t p = 0; p < 512; ++p) {
    const auto bit = [&](int i) { return p >> i & 1; };
    const int64_t k = bit(0) + 2 * bit(1) + 16 * bit(3) + 4 * bit(4) + 8 * bit(5);
    const int64_t n = 8 * bit(2) + bit(6) + 2 * bit(7) + 4 * bit(8);
    ASSERT_EQ(tile.at(p), (RowColumn{n, k})) << p;
  }
  // All n tiles of one k tile before the next.
  EXPECT_EQ((W4VllmReordered{48, 64}.offset(16, 0)), 512);
  EXPECT_EQ((W4VllmReordered{48, 64}.offset(0, 32)), 3 * 512);
}

TEST(Layout, ReorderedWordsComeBack) {
  const W4VllmReordered map{80, 160};
  std::mt19937 random(1);
  std::vector<uint32_t> words(static_cast<size_t>(map.num_words()));
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  std::vector<uint32_t> reordered(words.size()), back(words.size());
  export_vllm_reordered(map, words.data(), reordered.data());
  import_vllm_reordered(map, reordered.data(), back.data());
  EXPECT_NE(words, reordered);
  EXPECT_EQ(words, back);
}

TEST(Layout, TagsAreTold) {
  EXPECT_TRUE(kW4Lanes16Tag == (LayoutTag{"w4_lanes16", 1}));
  EXPECT_FALSE(kW4Lanes16Tag == (LayoutTag{"w4_lanes16", 2}));
  EXPECT_FALSE(kW4Lanes16Tag == (LayoutTag{"w4_lanes1", 1}));
  EXPECT_FALSE(kW4Lanes16Tag == kBf16Lanes16Tag);
}

static_assert(W4Lanes16{20, 64}.at(W4Lanes16{20, 64}.offset(19, 63)) == RowColumn{19, 63});

}  // namespace
}  // namespace quadrille::layout
