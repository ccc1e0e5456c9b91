// SPDX-License-Identifier: Apache-2.0
// The shard plan by its properties over every published shape, group and size, and by hand where a number is telling.
#include "layout/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "unit/layout/published_shapes.h"

namespace quadrille::layout {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int64_t> sizes(const std::vector<Range>& cut) {
  std::vector<int64_t> out;
  for (const Range& r : cut) out.push_back(r.size());
  return out;
}

std::vector<int64_t> width_sizes(int64_t width, int64_t k_align, int ranks) {
  const auto cut = cut_width(width, k_align, ranks, "the width");
  return cut ? sizes(*cut) : std::vector<int64_t>{};
}

// One after the other from 0 to size, each with something in it.
void expect_tiles(const std::vector<Range>& cut, int64_t size) {
  int64_t next = 0;
  for (const Range& r : cut) {
    EXPECT_EQ(r.begin, next);
    EXPECT_GT(r.size(), 0);
    next = r.end;
  }
  EXPECT_EQ(next, size);
}

// What the header promises of the columns of one rank, by enumeration over the unsharded columns.
void expect_sound(const KShard& s) {
  const int64_t group = s.format.group_size, k = s.format.k;
  ASSERT_LE(0, s.pad_begin);
  ASSERT_LE(s.pad_begin, s.k_begin);
  ASSERT_LT(s.k_begin, s.k_end);
  ASSERT_LE(s.k_end, s.pad_end);
  ASSERT_LE(s.pad_end, k);
  ASSERT_EQ(s.pad_begin % 32, 0) << "k32 steps lie at absolute multiples";
  ASSERT_EQ(s.k() % 8, 0) << "packed words are whole";
  std::set<int64_t> groups;
  for (int64_t column = s.pad_begin; column < s.pad_end; ++column) {
    groups.insert(group == 0 ? 0 : column / group);
    ASSERT_EQ((column - s.pad_begin) % 32, column % 32);
    ASSERT_EQ(s.holds(column), column - s.pad_begin >= s.k_offset() && column - s.pad_begin < s.k_offset() + s.held());
  }
  ASSERT_EQ(static_cast<int64_t>(groups.size()), s.num_groups());
  ASSERT_EQ(*groups.begin(), s.group_begin());
  ASSERT_EQ(*groups.rbegin(), s.group_end() - 1);
  ASSERT_EQ(s.num_groups(), group == 0 ? 1 : ceil_div(s.k(), group)) << "the shard is a matrix with these groups";
  if (group == 0) {
    ASSERT_EQ(s.pad_begin % 128, 0) << "pieces of one scale a channel";
    return;
  }
  // No group is carried for nothing, and each group that is carried is carried whole.
  ASSERT_EQ(s.pad_begin, s.k_begin / group * group);
  ASSERT_EQ(s.pad_end, std::min(k, ceil_div(s.k_end, group) * group));
}

TEST(ShardPlan, EveryPublishedShapeAtEverySize) {
  for (const auto& shape : test::kPublishedShapes) {
    for (const int64_t group : test::group_sizes(shape)) {
      for (int ranks = 1; ranks <= kMaxRanks; ++ranks) {
        SCOPED_TRACE(std::string(shape.name) + " group " + std::to_string(group) + " ranks " + std::to_string(ranks));
        auto cut = cut_width(shape.expert_width, KFormat{1, true, group}.k_align(), ranks, "the expert width");
        ASSERT_TRUE(cut) << cut.error().message;
        ASSERT_EQ(cut->size(), static_cast<size_t>(ranks));
        expect_tiles(*cut, shape.expert_width);
        for (const Range& held : *cut) {
          ASSERT_EQ(held.size() % 8, 0) << "gate and up are W4A8 matrices of their own";
          expect_sound(k_shard({shape.expert_width, true, group}, held));
        }
      }
    }
  }
}

TEST(ShardPlan, AnyCutGoesThroughGroups) {
  // Cuts as even as possible, wherever they fall.
  for (const auto& shape : test::kPublishedShapes) {
    for (const int64_t group : test::group_sizes(shape)) {
      for (int ranks = 2; ranks <= 8; ++ranks) {
        const auto cut = cut_in_units(shape.expert_width, 8, ranks, "the expert width");
        ASSERT_TRUE(cut);
        const auto held = sizes(*cut);
        EXPECT_LE(*std::max_element(held.begin(), held.end()) - *std::min_element(held.begin(), held.end()), 8);
        for (const Range& r : *cut) expect_sound(k_shard({shape.expert_width, true, group}, r));
      }
    }
  }
}

TEST(ShardPlan, AGroupCutInTwoKeepsItsScaleOnBothSides) {
  // 768 over four: the second rank's columns 192..383 lie in groups 1 and 2 of 128.
  const KShard s = k_shard({768, true, 128}, {192, 384});
  EXPECT_EQ(s.pad_begin, 128);
  EXPECT_EQ(s.pad_end, 384);
  EXPECT_EQ(s.k(), 256);
  EXPECT_EQ(s.held(), 192);
  EXPECT_EQ(s.k_offset(), 64);
  EXPECT_EQ(s.group_begin(), 1);
  EXPECT_EQ(s.group_end(), 3);
  // The same with groups of 64 lies on borders.
  const KShard on_borders = k_shard({768, true, 64}, {192, 384});
  EXPECT_EQ(on_borders.k_offset(), 0);
  EXPECT_EQ(on_borders.k(), 192);
  // 1 x 128 activation scales ask for multiples of 128 whatever the group.
  const KShard blocks = k_shard({768, true, 64}, {192, 384}, true);
  EXPECT_EQ(blocks.pad_begin, 128);
  EXPECT_EQ(blocks.num_groups(), 4);
}

TEST(ShardPlan, OneScaleAChannelBeginsOnAPiece) {
  const KShard s = k_shard({704, true, 0}, {616, 704});
  EXPECT_EQ(s.pad_begin, 512);
  EXPECT_EQ(s.pad_end, 704) << "not beyond K";
  EXPECT_EQ(s.k_offset(), 104);
  EXPECT_EQ(s.num_groups(), 1);
  EXPECT_EQ(s.group_begin(), 0);
}

TEST(ShardPlan, DenseColumnsNeedNoPadding) {
  const KShard s = k_shard({100, false, 0}, {33, 67});
  EXPECT_EQ(s.k(), 34);
  EXPECT_EQ(s.k_offset(), 0);
  EXPECT_EQ(s.num_groups(), 0);
}

TEST(ShardPlan, WidthsByHand) {
  EXPECT_THAT(width_sizes(14336, 128, 8), ElementsAre(1792, 1792, 1792, 1792, 1792, 1792, 1792, 1792));
  EXPECT_THAT(width_sizes(2048, 128, 4), ElementsAre(512, 512, 512, 512));
  EXPECT_THAT(width_sizes(128, 128, 2), ElementsAre(64, 64)) << "through a group of 128";
  // 11 groups over three: on borders the slowest reads 2 * 512 + 512, as even as possible 2 * 472 + 640.
  EXPECT_THAT(width_sizes(1408, 128, 3), ElementsAre(512, 512, 384));
  // Six groups over four: on borders 2 * 256 + 256, evenly 2 * 192 + 256.
  EXPECT_THAT(width_sizes(768, 128, 4), ElementsAre(192, 192, 192, 192));
  // Over eight: evenly 2 * 96 + 256, where 96 columns straddle two groups of 128; in units of 64, 2 * 128 + 128.
  EXPECT_THAT(width_sizes(768, 128, 8), ElementsAre(128, 128, 128, 128, 64, 64, 64, 64));
  // With groups of 32 the even cut lies on borders: 2 * 96 + 128.
  EXPECT_THAT(width_sizes(768, 32, 8), ElementsAre(96, 96, 96, 96, 96, 96, 96, 96));
  EXPECT_THAT(width_sizes(64, 128, 8), ElementsAre(8, 8, 8, 8, 8, 8, 8, 8));
  EXPECT_THAT(width_sizes(20, 1, 3), ElementsAre(8, 8, 4)) << "a dense width may end in a shorter unit";
}

// The rule of cut_width() once more, by counting, over all units.
TEST(ShardPlan, NoUnitReadsLess) {
  const auto slowest = [](const std::vector<Range>& cut, const KFormat& down) {
    int64_t most = 0;
    for (const Range& r : cut) {
      const int64_t records = (k_shard(down, r).k() + 127) / 128;
      most = std::max(most, 2 * r.size() + 128 * records);
    }
    return most;
  };
  for (const auto& shape : test::kPublishedShapes) {
    for (const int64_t group : test::group_sizes(shape)) {
      const KFormat down = {shape.expert_width, true, group};
      for (int ranks = 2; ranks <= 8; ++ranks) {
        const auto chosen = cut_width(shape.expert_width, down.k_align(), ranks, "the width");
        ASSERT_TRUE(chosen);
        for (const int64_t unit : {8, 16, 32, 64, 128}) {
          const auto other = cut_in_units(shape.expert_width, unit, ranks, "the width");
          if (!other) continue;
          EXPECT_LE(slowest(*chosen, down), slowest(*other, down)) << shape.name << " " << ranks << " unit " << unit;
        }
      }
    }
  }
}

TEST(ShardPlan, EveryQueryHeadFindsItsKvHead) {
  const std::vector<std::pair<int64_t, int64_t>> models = {{32, 4}, {64, 4}, {16, 2},  {96, 8}, {48, 8}, {64, 8},
                                                           {32, 2}, {16, 8}, {128, 1}, {64, 1}, {32, 8}, {16, 16},
                                                           {28, 4}, {8, 2},  {12, 3},  {1, 1},  {7, 7},  {9, 3}};
  for (const auto& [heads, kv_heads] : models) {
    for (int ranks = 1; ranks <= std::min<int64_t>(heads, kMaxRanks); ++ranks) {
      SCOPED_TRACE(std::to_string(heads) + "/" + std::to_string(kv_heads) + " over " + std::to_string(ranks));
      const auto shards = cut_heads(heads, kv_heads, ranks);
      ASSERT_TRUE(shards) << shards.error().message;
      std::vector<Range> query;
      for (const HeadShard& s : *shards) {
        query.push_back(s.heads);
        std::set<int64_t> read;
        for (int64_t h = s.heads.begin; h < s.heads.end; ++h) {
          const int64_t kv = h * kv_heads / heads;
          read.insert(kv);
          ASSERT_EQ(s.kv_heads.begin + s.local_kv_head(h - s.heads.begin), kv);
        }
        ASSERT_EQ(*read.begin(), s.kv_heads.begin);
        ASSERT_EQ(*read.rbegin(), s.kv_heads.end - 1);
        ASSERT_EQ(static_cast<int64_t>(read.size()), s.kv_heads.size()) << "no KV head is held for nothing";
      }
      expect_tiles(query, heads);
    }
  }
}

TEST(ShardPlan, HeadsByHand) {
  const auto eight = cut_heads(32, 4, 8);
  ASSERT_TRUE(eight);
  EXPECT_EQ((*eight)[3].heads, (Range{12, 16}));
  EXPECT_EQ((*eight)[3].kv_heads, (Range{1, 2})) << "four KV heads on eight ranks: each twice";
  const auto three = cut_heads(32, 4, 3);
  ASSERT_TRUE(three);
  EXPECT_EQ((*three)[1].heads, (Range{11, 22}));
  EXPECT_EQ((*three)[1].kv_heads, (Range{1, 3}));
  EXPECT_EQ((*three)[1].local_kv_head(4), 0);
  EXPECT_EQ((*three)[1].local_kv_head(5), 1) << "query head 16 reads KV head 2";
}

ModelShape small_model() {
  ModelShape shape;
  shape.vocabulary = 2000;
  shape.num_heads = 8;
  shape.num_kv_heads = 2;
  shape.head_dim = 32;
  shape.layers = {{true, {256, true, 128}, {128, true, 128}, {}, {}},
                  {true, {256, true, 128}, {}, {}, {512, true, 128}},
                  {false, {256, false, 0}, {128, true, 32}, {96, false, 0}, {}}};
  return shape;
}

TEST(ShardPlan, AWholeModel) {
  const auto plan = plan_shards(small_model(), 3);
  ASSERT_TRUE(plan) << plan.error().message;
  ASSERT_EQ(plan->size(), 3u);
  const ModelShard& last = (*plan)[2];
  EXPECT_EQ(last.rank, 2);
  EXPECT_EQ(last.vocabulary, (Range{1336, 2000})) << "250 units of 8: 84, 83, 83";
  EXPECT_EQ(last.layers[0].attention.q_rows, (Range{192, 256}));
  EXPECT_EQ(last.layers[0].attention.kv_rows, (Range{32, 64}));
  EXPECT_EQ(last.layers[0].attention.o.pad_begin, 128) << "o_proj's groups of 128 span four heads";
  EXPECT_EQ(last.layers[0].attention.o.k_offset(), 64);
  EXPECT_EQ(last.layers[2].attention.o.k_offset(), 0) << "dense";
  EXPECT_TRUE(last.layers[0].dense.empty());
  EXPECT_FALSE(last.layers[1].dense.empty());
  EXPECT_EQ(last.layers[0].experts.columns, last.layers[2].experts.columns) << "one cut for all groups";
  EXPECT_EQ(last.layers[0].experts.down.num_groups(), 1);
  EXPECT_TRUE((*plan)[0].adds_row_parallel_bias());
  EXPECT_FALSE(last.adds_row_parallel_bias());
  std::vector<Range> vocabulary, widths;
  for (const ModelShard& shard : *plan) {
    vocabulary.push_back(shard.vocabulary);
    widths.push_back(shard.layers[0].experts.columns);
  }
  expect_tiles(vocabulary, 2000);
  expect_tiles(widths, 128);
}

TEST(ShardPlan, WidthUnitIsTheCallers) {
  ModelShape shape = small_model();
  shape.width_unit = 8;
  const auto plan = plan_shards(shape, 3);
  ASSERT_TRUE(plan);
  EXPECT_EQ((*plan)[0].layers[0].experts.columns, (Range{0, 48}));
  EXPECT_EQ((*plan)[1].layers[0].experts.columns, (Range{48, 88}));
  shape.width_unit = 12;
  EXPECT_THAT(plan_shards(shape, 3).error().message, HasSubstr("multiples of 8"));
}

TEST(ShardPlan, RefusalsNameRuleNumbersAndLegalSizes) {
  ModelShape shape = small_model();
  const auto heads = plan_shards(shape, 9);
  ASSERT_FALSE(heads);
  EXPECT_EQ(heads.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(heads.error().message, HasSubstr("9 ranks: the number of query heads is 8"));
  EXPECT_THAT(heads.error().message, HasSubstr("1..8 ranks"));
  shape.layers[0].experts_down.k = 40;
  EXPECT_THAT(plan_shards(shape, 6).error().message, HasSubstr("the expert width is 40, cut in units of 8"));
  EXPECT_THAT(plan_shards(shape, 6).error().message, HasSubstr("1..5 ranks"));
  shape = small_model();
  shape.vocabulary = 30;
  EXPECT_THAT(plan_shards(shape, 5).error().message, HasSubstr("the vocabulary is 30"));
  EXPECT_TRUE(plan_shards(shape, 4)) << "the last unit may be shorter";
  shape = small_model();
  shape.head_dim = 12;
  EXPECT_THAT(plan_shards(shape, 2).error().message, HasSubstr("KV heads of 12 rows"));
  EXPECT_THAT(plan_shards(small_model(), 65).error().message, HasSubstr("1..64"));
  EXPECT_THAT(plan_shards(small_model(), 0).error().message, HasSubstr("1..64"));
}

}  // namespace
}  // namespace quadrille::layout
