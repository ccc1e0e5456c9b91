// SPDX-License-Identifier: Apache-2.0
// The device's page of the KV cache is a bijection: every element of keys, values and padding has one place.
#include <gtest/gtest.h>

#include <vector>

#include "layout/kv_tile.h"

namespace quadrille::layout {
namespace {

TEST(KvTile, EveryPlaceIsMetOnce) {
  for (const auto& [heads, head_dim] : {std::pair<int64_t, int64_t>{1, 16},
                                        {3, 32},
                                        {2, 64},
                                        {1, 80},
                                        {2, 96},
                                        {1, 112},
                                        {3, 128},
                                        {1, 160},
                                        {1, 192},
                                        {2, 256}}) {
    const KvTile map{heads, head_dim};
    std::vector<int> met(static_cast<size_t>(map.page_size()), 0);
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t position = 0; position < kPagePositions; ++position) {
        for (int64_t dim = 0; dim < map.padded_dim(); ++dim) {
          const int64_t key = map.key_offset(head, position, dim);
          const int64_t value = map.value_offset(head, position, dim);
          ASSERT_TRUE(key >= 0 && key < map.page_size() && value >= 0 && value < map.page_size());
          ++met[static_cast<size_t>(key)];
          ++met[static_cast<size_t>(value)];
          ASSERT_TRUE(map.holds_key(key));
          ASSERT_FALSE(map.holds_key(value));
          ASSERT_EQ(map.at(key), (KvPlace{head, position, dim}));
          ASSERT_EQ(map.at(value), (KvPlace{head, position, dim}));
        }
      }
    }
    for (const int count : met) ASSERT_EQ(count, 1) << heads << " heads of " << head_dim;
  }
}

TEST(KvTile, PadsToACompiledDimension) {
  EXPECT_EQ(padded_head_dim(0), 0);
  EXPECT_EQ(padded_head_dim(257), 0);
  for (int64_t dim = 1; dim <= kMostTileDim; ++dim) {
    int64_t next = 0;
    for (const int64_t compiled : kTileDims) next = next == 0 && compiled >= dim ? compiled : next;
    EXPECT_EQ(padded_head_dim(dim), next) << dim;
  }
}

}  // namespace
}  // namespace quadrille::layout
