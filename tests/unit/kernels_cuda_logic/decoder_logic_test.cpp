// SPDX-License-Identifier: Apache-2.0
// The index arithmetic of attention and of the dense product: fragments read with the kernels' own functions and put
// through mma m16n8k16 lane by lane give the products that were asked for; every bank is met once; blocks, heads and
// tokens are spread without gaps.
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "kernels/cuda/attention/spread.h"
#include "kernels/cuda/bf16_gemm/config.h"
#include "layout/kv_tile.h"
#include "layout/shard_plan.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {
namespace {

// Sums of a warp: row g columns 2t, 2t + 1, then row g + 8.
using Sums = std::array<std::array<double, 4>, 32>;
struct Pair {
  double low = 0, high = 0;
};
// The instruction by its definition (PTX ISA, mma.m16n8k16): a[lane][0..3], b[lane][0..1].
void mma(Sums* d, const std::array<std::array<Pair, 4>, 32>& a, const std::array<std::array<Pair, 2>, 32>& b) {
  double left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
      left[row][k] = a[lane][i].low;
      left[row][k + 1] = a[lane][i].high;
    }
    for (int i = 0; i < 2; ++i) {
      right[2 * t + 8 * i][g] = b[lane][i].low;
      right[2 * t + 8 * i + 1][g] = b[lane][i].high;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < 16; ++k) (*d)[lane][i] += left[row][k] * right[k][column];
    }
  }
}

double value(uint16_t code) {
  return numerics::bf16_to_f32(code);
}
// What ldmatrix.x4 gives to a lane in register i; row_at(l): the byte whose address lane l gives.
template <typename RowAt>
Pair loaded(const std::vector<uint16_t>& data, const RowAt& row_at, int lane, int i) {
  const auto at = static_cast<size_t>(row_at(8 * i + lane / 4) / 2 + lane % 4 * 2);
  return {value(data[at]), value(data[at + 1])};
}
template <typename RowAt>
Pair loaded_transposed(const std::vector<uint16_t>& data, const RowAt& row_at, int lane, int i) {
  const auto element = [&](int row) { return value(data[static_cast<size_t>(row_at(8 * i + row) / 2 + lane / 4)]); };
  return {element(lane % 4 * 2), element(lane % 4 * 2 + 1)};
}

struct Block {
  std::vector<uint16_t> tile;  // one KV head
  std::vector<double> query;   // [16, dim]
  std::vector<double> key;     // [64, dim]
  std::vector<double> values;  // [64, dim]
  std::vector<double> weight;  // [16, 64]
};
Block random_block(int dim) {
  std::mt19937 random(static_cast<uint32_t>(dim));
  const auto small = [&] { return static_cast<double>(static_cast<int>(random() % 17) - 8); };
  const layout::KvTile map{1, dim};
  Block b;
  b.tile.resize(static_cast<size_t>(map.page_size()));
  for (int i = 0; i < 16 * dim; ++i) b.query.push_back(small());
  for (int i = 0; i < 16 * 64; ++i) b.weight.push_back(small());
  for (int position = 0; position < 64; ++position) {
    for (int d = 0; d < dim; ++d) {
      b.key.push_back(small());
      b.values.push_back(small());
      b.tile[static_cast<size_t>(map.key_offset(0, position, d))] =
          numerics::bf16_from_f32(static_cast<float>(b.key.back()));
      b.tile[static_cast<size_t>(map.value_offset(0, position, d))] =
          numerics::bf16_from_f32(static_cast<float>(b.values.back()));
    }
  }
  return b;
}

class Fragments : public ::testing::TestWithParam<int> {};

TEST_P(Fragments, GiveScores) {
  const int dim = GetParam();
  const Block block = random_block(dim);
  for (int j = 0; j < 8; ++j) {
    Sums sums = {};
    for (int c = 0; c < dim / 32; ++c) {
      for (int h = 0; h < 2; ++h) {
        std::array<std::array<Pair, 4>, 32> a;
        std::array<std::array<Pair, 2>, 32> b;
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int i = 0; i < 4; ++i) {
            const double* row = &block.query[static_cast<size_t>((g + i % 2 * 8) * dim + 32 * c + 8 * t + 4 * h)];
            a[lane][i] = {row[i / 2 * 2], row[i / 2 * 2 + 1]};
          }
          const auto row_at = [&](int of) { return key_piece_at(j, c, of); };
          for (int i = 0; i < 2; ++i) b[lane][i] = loaded(block.tile, row_at, lane, 2 * h + i);
        }
        mma(&sums, a, b);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, key = 8 * j + lane % 4 * 2 + i % 2;
        double dot = 0;
        for (int d = 0; d < dim; ++d) {
          dot += block.query[static_cast<size_t>(row * dim + d)] * block.key[static_cast<size_t>(key * dim + d)];
        }
        ASSERT_EQ(sums[lane][i], dot) << "row " << row << " key " << key;
      }
    }
  }
}

TEST_P(Fragments, GiveSumsOfValues) {
  const int dim = GetParam();
  const Block block = random_block(dim);
  for (int c = 0; c < dim / 32; ++c) {
    std::array<Sums, 4> sums = {};
    for (int s = 0; s < 4; ++s) {
      std::array<std::array<Pair, 4>, 32> a;
      for (int lane = 0; lane < 32; ++lane) {
        // Weight fragments are the score fragments of key tiles 2 s (words 0, 1) and 2 s + 1 (2, 3).
        for (int i = 0; i < 4; ++i) {
          const int row = lane / 4 + i % 2 * 8, key = 8 * (2 * s + i / 2) + lane % 4 * 2;
          a[lane][i] = {block.weight[static_cast<size_t>(row * 64 + key)],
                        block.weight[static_cast<size_t>(row * 64 + key + 1)]};
        }
      }
      for (int j = 0; j < 4; ++j) {
        std::array<std::array<Pair, 2>, 32> b;
        for (int lane = 0; lane < 32; ++lane) {
          const auto row_at = [&](int of) { return 64 * dim * 2 + value_piece_at(s, c, j / 2 * 2, of); };
          for (int i = 0; i < 2; ++i) b[lane][i] = loaded_transposed(block.tile, row_at, lane, j % 2 * 2 + i);
        }
        mma(&sums[static_cast<size_t>(j)], a, b);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 16; ++i) {
        const int row = lane / 4 + i % 4 / 2 * 8;
        const int d = 32 * c + 8 * (i / 4) + lane % 4 * 2 + i % 2;
        double sum = 0;
        for (int key = 0; key < 64; ++key) {
          sum += block.weight[static_cast<size_t>(row * 64 + key)] * block.values[static_cast<size_t>(key * dim + d)];
        }
        ASSERT_EQ(sums[static_cast<size_t>(i / 4)][lane][i % 4], sum) << "row " << row << " dimension " << d;
      }
    }
  }
}

// Eight lanes read 128 bytes at a time: their pieces lie in eight different columns of banks.
template <typename PieceAt>
void expect_no_conflict(const PieceAt& piece_at) {
  for (int first = 0; first < 32; first += 8) {
    uint32_t columns = 0;
    for (int lane = first; lane < first + 8; ++lane) columns |= 1u << (piece_at(lane) / 16 % 8);
    ASSERT_EQ(columns, 0xffu) << "lanes from " << first;
  }
}
TEST_P(Fragments, MeetEveryBankOnce) {
  const int dim = GetParam();
  for (int c = 0; c < dim / 32; ++c) {
    for (int j = 0; j < 8; ++j) {
      expect_no_conflict([&](int lane) { return key_piece_at(j, c, lane); });
      expect_no_conflict([&](int lane) { return value_piece_at(j / 2, c, j % 2 * 2, lane); });
    }
  }
}

// The canonical layouts of wgmma in 64-byte swizzle (PTX ISA): bits 7 and 8 of the byte are added to bits 4 and 5.
int64_t swizzled_bytes(int64_t bytes) {
  return bytes ^ (bytes >> 7 & 3) << 4;
}
TEST_P(Fragments, LieWhereWgmmaReadsThem) {
  const int dim = GetParam();
  const layout::KvTile map{1, dim};
  for (int position = 0; position < 64; ++position) {
    for (int d = 0; d < dim; ++d) {
      // k contiguous: rows of 64 bytes, groups of eight keys 512 bytes apart; a step of 16 k is 32 bytes on. Which k of
      // the step a dimension is: that of the word of the query row that the lane t = d / 8 % 4 holds.
      const int step = d / 4 % 2, k = d / 2 % 2 * 8 + d / 8 % 4 * 2 + d % 2;
      const int64_t key = d / 32 * 4096 + position / 8 * 512 + position % 8 * 64 + step * 32 + k * 2;
      ASSERT_EQ(2 * map.key_offset(0, position, d), swizzled_bytes(key));
      // n contiguous: chunks of 32 n 4096 bytes apart, groups of eight k 512; a step of 16 k is 1024 bytes on.
      const int64_t of_value =
          d / 32 * 4096 + position / 16 * 1024 + position / 8 % 2 * 512 + position % 8 * 64 + d % 32 * 2;
      ASSERT_EQ(2 * (map.value_offset(0, position, d) - map.values_begin()), swizzled_bytes(of_value));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Dims, Fragments, ::testing::Values(32, 64, 96, 128, 192, 256));

TEST(Spread, TakesEveryBlockOnce) {
  for (int64_t count = 1; count <= 70; ++count) {
    for (int64_t parts = 1; parts <= 40; ++parts) {
      for (const int64_t least : {1, 2, 4}) {
        const int64_t length = blocks_of_part(count, parts, least);
        ASSERT_GE(length, 1);
        ASSERT_GE(length * parts, count);
        if (parts == 1) {
          ASSERT_GE(length, count);
        }
      }
    }
  }
}

TEST(Spread, SeenKeysOfBlocks) {
  for (const int64_t window : {0, 1, 5, 64, 100}) {
    for (int64_t position = 0; position < 300; ++position) {
      const SeenKeys seen = seen_keys(position, window);
      const BlockRange blocks = seen_blocks(seen);
      for (int64_t key = 0; key < 320; ++key) {
        const bool visible = key <= position && (window == 0 || key > position - window);
        const SeenPart part = seen_in_block(seen, key / 64);
        ASSERT_EQ(key % 64 >= part.first && key % 64 <= part.last, visible) << position << " " << key;
        const int64_t block = key / 64;
        if (visible) {
          ASSERT_TRUE(block >= blocks.first && block < blocks.first + blocks.count);
        }
      }
    }
  }
  EXPECT_EQ(seen_blocks(seen_keys(-1, 0)).count, 0);
}

TEST(HeadTiles, HoldEveryHeadOfAShardOnce) {
  for (const auto& [heads, kv_heads] :
       {std::pair<int64_t, int64_t>{32, 4}, {24, 8}, {16, 16}, {64, 4}, {40, 1}, {7, 7}, {48, 3}}) {
    for (int ranks = 1; ranks <= 7; ++ranks) {
      const auto shards = layout::cut_heads(heads, kv_heads, ranks);
      if (!shards) continue;
      for (const layout::HeadShard& shard : *shards) {
        const HeadTiles tiles{shard.heads.size(), shard.heads_per_kv,
                              shard.heads.begin - shard.kv_heads.begin * shard.heads_per_kv};
        std::vector<int> met(static_cast<size_t>(tiles.num_heads), 0);
        for (int64_t kv = 0; kv < shard.kv_heads.size(); ++kv) {
          for (int64_t i = 0; i < tiles.tiles() * kPackedHeads; ++i) {
            const int64_t head = tiles.head_at(kv, i / kPackedHeads, i % kPackedHeads);
            if (head < 0) continue;
            ASSERT_EQ(shard.local_kv_head(head), kv);
            ++met[static_cast<size_t>(head)];
          }
        }
        for (const int count : met) ASSERT_EQ(count, 1);
      }
    }
  }
}

TEST(AttentionPlan, ShortRunsGoAloneLongRunsInTiles) {
  const std::vector<int32_t> sequence = {4, 1, 1, 0, 0, 0, 0, 0, 0, 0, 3};
  std::vector<int32_t> singles(sequence.size());
  std::vector<QueryTile> tiles(sequence.size());
  const auto plan = plan_attention(sequence.data(), 11, 3, singles.data(), tiles.data());
  ASSERT_EQ(plan.num_singles, 4);
  ASSERT_EQ(plan.num_tiles, 3);
  EXPECT_EQ(std::vector<int32_t>(singles.begin(), singles.begin() + 4), (std::vector<int32_t>{0, 1, 2, 10}));
  const int expected[3][2] = {{3, 3}, {6, 3}, {9, 1}};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(tiles[i].first_token, expected[i][0]);
    EXPECT_EQ(tiles[i].num_tokens, expected[i][1]);
  }
  EXPECT_EQ(plan_attention(nullptr, 0, 3, nullptr, nullptr).num_tiles, 0);
}

TEST(DenseTile, SlotsAreTheFeaturesThatThreadsStore) {
  for (const int64_t n : {8, 64, 128, 136, 256, 400}) {
    std::vector<int> met(static_cast<size_t>(n), 0);
    for (int64_t tile = 0; tile < (n + 127) / 128; ++tile) {
      for (int slot = 0; slot < kTileSlots; ++slot) {
        const int64_t row = row_of_slot(tile, slot, false, n);
        const int warp = slot / 32, j = slot % 32 / 8, t = slot % 8 / 2, e = slot % 2;
        EXPECT_EQ(row, first_feature(tile, warp, t, false) + 4 * e + j);
        if (row < n) ++met[static_cast<size_t>(row)];
      }
    }
    for (const int count : met) ASSERT_EQ(count, 1) << n;
    if (n % 16 != 0) continue;
    std::fill(met.begin(), met.end(), 0);
    for (int64_t tile = 0; tile < (n / 2 + 63) / 64; ++tile) {
      for (int slot = 0; slot < kTileSlots; ++slot) {
        const int64_t row = row_of_slot(tile, slot, true, n);
        const int warp = slot / 32, j = slot % 32 / 8, t = slot % 8 / 2, e = slot % 2;
        const int64_t channel = first_feature(tile, warp, t, true) + 2 * e + j % 2;
        EXPECT_EQ(row, channel >= n / 2 ? n : channel + (j < 2 ? 0 : n / 2));
        if (row < n) ++met[static_cast<size_t>(row)];
      }
    }
    for (const int count : met) ASSERT_EQ(count, 1) << "gated " << n;
  }
}

TEST(DenseTile, StagesMeetEveryBankOnce) {
  std::vector<int> met(128 * 128 / 16, 0);
  for (int row = 0; row < 128; ++row) {
    for (int piece = 0; piece < 8; ++piece) ++met[static_cast<size_t>(stage_place(row, piece) / 16)];
  }
  for (const int count : met) ASSERT_EQ(count, 1);
  for (int c = 0; c < 2; ++c) {
    for (int j = 0; j < 16; ++j) {
      expect_no_conflict([&](int lane) { return stage_place(8 * j + lane / 4, 4 * c + lane % 4); });
    }
  }
}

}  // namespace
}  // namespace quadrille::kernels::cuda
