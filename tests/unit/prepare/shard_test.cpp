// SPDX-License-Identifier: Apache-2.0
// Sharding and gathering are each other's reverse, bit for bit, for every published width, group and size; what a rank
// does not hold is zero; prepared bytes of `vllm` are those of one rank.
#include "prepare/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "prepare/prepare_hopper.h"
#include "random_w4.h"
#include "unit/layout/published_shapes.h"

namespace quadrille::prepare {
namespace {

using kernels::Numerics;
using kernels::W4Source;
using layout::KFormat;
using layout::KShard;
using layout::Range;
using ::testing::HasSubstr;

constexpr W4Source kSources[] = {W4Source::kUint4b8, W4Source::kInt4, W4Source::kInt8};

OwnedW4 owned(const test::RandomW4& m, W4Source source) {
  OwnedW4 out{m.n, m.k, m.group_size, source, {}, {}, m.scales, {}};
  if (source == W4Source::kInt8) {
    out.codes = m.q;
  } else {
    out.packed = source == W4Source::kInt4 ? m.int4 : m.packed;
  }
  return out;
}

std::vector<KShard> plan(int64_t k, int64_t group, const std::vector<Range>& cut) {
  std::vector<KShard> shards;
  for (const Range& held : cut) shards.push_back(layout::k_shard({k, true, group}, held));
  return shards;
}

std::vector<OwnedW4> shard_rows_of(const CanonicalW4& whole, const std::vector<KShard>& shards, ChannelScale channel) {
  std::vector<OwnedW4> out;
  for (const KShard& shard : shards) {
    auto one = row_parallel_shard(whole, shard, channel);
    EXPECT_TRUE(one) << one.error().message;
    out.push_back(std::move(*one));
  }
  return out;
}

Result<OwnedW4> gather(const std::vector<OwnedW4>& matrices, const std::vector<KShard>& shards) {
  std::vector<RowPart<CanonicalW4>> parts;
  for (size_t i = 0; i < shards.size(); ++i) parts.push_back({matrices[i].view(), shards[i]});
  return gather_row_parallel(parts);
}

// down [n, I] over its columns, gate and up [I, k] over their rows, by one cut.
void expect_round_trip(int64_t width, int64_t group, const std::vector<Range>& cut, W4Source source) {
  const test::RandomW4 down(3, width, group, static_cast<unsigned>(width + group));
  const auto shards = plan(width, group, cut);
  const auto back = gather(shard_rows_of(down.view(source), shards, ChannelScale::kWholeRow), shards);
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_TRUE(*back == owned(down, source));

  const test::RandomW4 gate(width, group == 0 ? 40 : group, group, static_cast<unsigned>(width));
  std::vector<ColumnPart<CanonicalW4>> parts;
  for (const Range& rows : cut) parts.push_back({column_parallel_shard(gate.view(source), rows), rows});
  const auto gathered = gather_column_parallel(parts, width);
  ASSERT_TRUE(gathered) << gathered.error().message;
  EXPECT_TRUE(*gathered == owned(gate, source));
}

TEST(Shard, EveryPublishedShapeComesBack) {
  for (const auto& shape : quadrille::test::kPublishedShapes) {
    for (const int64_t group : quadrille::test::group_sizes(shape)) {
      for (int ranks = 1; ranks <= 8; ++ranks) {
        SCOPED_TRACE(std::string(shape.name) + " group " + std::to_string(group) + " ranks " + std::to_string(ranks));
        const auto planned =
            layout::cut_width(shape.expert_width, KFormat{1, true, group}.k_align(), ranks, "the expert width");
        const auto even = layout::cut_in_units(shape.expert_width, 8, ranks, "the expert width");
        ASSERT_TRUE(planned && even);
        expect_round_trip(shape.expert_width, group, *planned, W4Source::kUint4b8);
        if (*planned != *even) expect_round_trip(shape.expert_width, group, *even, W4Source::kUint4b8);
      }
    }
  }
}

TEST(Shard, EverySpellingAndAnyColumnComesBack) {
  // Cuts that no plan of a width makes: inside a word, of a single column.
  const std::vector<std::vector<Range>> cuts = {
      {{0, 3}, {3, 4}, {4, 77}, {77, 384}}, {{0, 200}, {200, 211}, {211, 384}}, {{0, 383}, {383, 384}}, {{0, 384}}};
  for (const W4Source source : kSources) {
    for (const int64_t group : {0, 32, 64, 128}) {
      const test::RandomW4 m(5, 384, group, 7);
      for (const auto& cut : cuts) {
        const auto shards = plan(384, group, cut);
        const auto back = gather(shard_rows_of(m.view(source), shards, ChannelScale::kOwnGroups), shards);
        ASSERT_TRUE(back) << back.error().message;
        EXPECT_TRUE(*back == owned(m, source));
      }
    }
  }
}

TEST(Shard, WhatIsNotHeldIsZero) {
  for (const W4Source source : kSources) {
    for (const int64_t group : {0, 32, 64, 128}) {
      const test::RandomW4 m(4, 768, group, 11);
      const KShard shard = layout::k_shard({768, true, group}, {200, 344});
      const auto part = row_parallel_shard(m.view(source), shard, ChannelScale::kOwnGroups);
      ASSERT_TRUE(part);
      const auto prepared = prepare_w4(part->view(), Numerics::kExact);
      ASSERT_TRUE(prepared) << prepared.error().message;
      const CanonicalCopy codes = unprepare(*prepared);
      ASSERT_EQ(codes.k, shard.k());
      for (int64_t i = 0; i < m.n * shard.k(); ++i) {
        const int64_t row = i / shard.k(), column = shard.pad_begin + i % shard.k();
        const int found = static_cast<int>(codes.packed[static_cast<size_t>(i / 8)] >> (4 * (i % 8)) & 15) - 8;
        ASSERT_EQ(found, shard.holds(column) ? m.q[static_cast<size_t>(row * m.k + column)] : 0);
      }
      for (int64_t row = 0; row < m.n; ++row) {
        for (int64_t g = shard.group_begin(); g < shard.group_end(); ++g) {
          ASSERT_EQ(part->scales[static_cast<size_t>(row * shard.num_groups() + g - shard.group_begin())],
                    m.scales[static_cast<size_t>(row * m.groups + g)]);
        }
      }
    }
  }
}

// vllm: channel scales of the whole row, and the group scales' bytes of one rank in every shard.
TEST(Shard, VllmBytesAreThoseOfOneRank) {
  for (const int64_t group : {0, 32, 64, 128}) {
    const test::RandomW4 m(24, 768, group, 13);
    const auto whole = prepare_w4(m.view(), Numerics::kVllm);
    ASSERT_TRUE(whole);
    const layout::ScaleLanes16 whole_map{m.n, m.groups};
    bool other_bytes = false;
    for (int ranks = 2; ranks <= 8; ++ranks) {
      const auto cut = layout::cut_in_units(768, 8, ranks, "the width");
      const auto shards = plan(768, group, *cut);
      const auto matrices = shard_rows_of(m.view(), shards, ChannelScale::kWholeRow);
      const auto own = shard_rows_of(m.view(), shards, ChannelScale::kOwnGroups);
      for (size_t i = 0; i < shards.size(); ++i) {
        const auto part = prepare_w4(matrices[i].view(), Numerics::kVllm);
        const auto engine_like = prepare_w4(own[i].view(), Numerics::kVllm);
        ASSERT_TRUE(part && engine_like);
        const layout::ScaleLanes16 map{m.n, shards[i].num_groups()};
        for (int64_t row = 0; row < m.n; ++row) {
          ASSERT_EQ(part->channel_scale[row], whole->channel_scale[row]);
          other_bytes |= engine_like->channel_scale[row] != whole->channel_scale[row];
          for (int64_t g = 0; g < shards[i].num_groups(); ++g) {
            ASSERT_EQ(part->scale_e4m3[map.offset(row, g)],
                      whole->scale_e4m3[whole_map.offset(row, g + shards[i].group_begin())]);
          }
        }
      }
    }
    EXPECT_EQ(other_bytes, group != 0) << "the option with its own name differs where there are groups";
  }
}

TEST(Shard, HopperTakesTheSameAbsmax) {
  const test::RandomW4 m(64, 512, 64, 17);
  const auto whole = prepare_hopper_w4({{m.view()}}, Numerics::kVllm);
  const auto shards = plan(512, 64, {{0, 72}, {72, 512}});
  const auto matrices = shard_rows_of(m.view(), shards, ChannelScale::kWholeRow);
  ASSERT_TRUE(whole);
  for (const OwnedW4& matrix : matrices) {
    const auto part = prepare_hopper_w4({{matrix.view()}}, Numerics::kVllm);
    ASSERT_TRUE(part) << part.error().message;
    EXPECT_EQ(part->channel_scale, whole->channel_scale);
  }
}

TEST(Shard, AnAbsmaxBelowAScaleIsRefused) {
  const test::RandomW4 m(2, 64, 32, 19);
  const std::vector<float> absmax = {1.0f, 1e-9f};
  CanonicalW4 view = m.view();
  view.row_absmax = absmax.data();
  EXPECT_THAT(prepare_w4(view, Numerics::kVllm).error().message, HasSubstr("row 1: row_absmax is 1e-09"));
  EXPECT_THAT(prepare_hopper_w4({{view}}, Numerics::kVllm).error().message, HasSubstr("row 1: row_absmax"));
  EXPECT_TRUE(prepare_w4(view, Numerics::kExact)) << "exact has no channel scales";
}

TEST(Shard, AScaleThatIsNoNumberIsFoundOnEveryRank) {
  test::RandomW4 m(3, 256, 64, 23);
  m.scales[static_cast<size_t>(2 * m.groups + 3)] = 0x7f80;
  const KShard first = layout::k_shard({256, true, 64}, {0, 64});
  const auto found = row_parallel_shard(m.view(), first, ChannelScale::kWholeRow);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, ErrorCode::kInvalidData);
  EXPECT_THAT(found.error().message, HasSubstr("row 2, group 3"));
}

// KV heads that several ranks hold: rows overlap, and the copies agree.
TEST(Shard, ReplicatedKvHeadsComeBack) {
  const auto heads = layout::cut_heads(8, 2, 3);
  ASSERT_TRUE(heads);
  const test::RandomW4 k_proj(2 * 16, 128, 128, 29);
  std::vector<OwnedW4> copies;
  std::vector<ColumnPart<CanonicalW4>> parts;
  for (const layout::HeadShard& shard : *heads) {
    const Range rows = {shard.kv_heads.begin * 16, shard.kv_heads.end * 16};
    parts.push_back({column_parallel_shard(k_proj.view(), rows), rows});
  }
  EXPECT_EQ(parts[1].rows.size(), 32) << "the middle rank reads both";
  const auto back = gather_column_parallel(parts, 32);
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_TRUE(*back == owned(k_proj, W4Source::kUint4b8));
  // A copy that differs in one code is not taken for the same matrix.
  test::RandomW4 changed = k_proj;
  changed.packed[5] ^= 0x100;
  parts[0].matrix = column_parallel_shard(changed.view(), parts[0].rows);
  EXPECT_THAT(gather_column_parallel(parts, 32).error().message, HasSubstr("codes differ"));
}

TEST(Shard, DenseMatricesComeBack) {
  std::vector<float> values(37 * 50);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  for (const DenseType type : {DenseType::kF32, DenseType::kBf16}) {
    const CanonicalDense whole = {37, 50, type, values.data()};
    const size_t bytes = 37 * 50 * (type == DenseType::kF32 ? 4 : 2);
    for (int ranks = 1; ranks <= 5; ++ranks) {
      const auto rows = layout::cut_in_units(37, 8, ranks, "the vocabulary");
      const auto columns = layout::cut_in_units(50, 1, ranks, "the width");
      std::vector<ColumnPart<CanonicalDense>> column_parts;
      std::vector<RowPart<CanonicalDense>> row_parts;
      std::vector<OwnedDense> owners;
      for (const Range& r : *rows) column_parts.push_back({column_parallel_shard(whole, r), r});
      for (const Range& r : *columns) owners.push_back(row_parallel_shard(whole, layout::k_shard({50, false, 0}, r)));
      for (size_t i = 0; i < owners.size(); ++i) {
        row_parts.push_back({owners[i].view(), layout::k_shard({50, false, 0}, (*columns)[i])});
      }
      const auto by_rows = gather_column_parallel(column_parts, 37);
      const auto by_columns = gather_row_parallel(row_parts);
      ASSERT_TRUE(by_rows && by_columns);
      EXPECT_EQ(std::memcmp(by_rows->data.data(), values.data(), bytes), 0);
      EXPECT_EQ(std::memcmp(by_columns->data.data(), values.data(), bytes), 0);
    }
  }
}

TEST(Shard, GatherRefusesWhatDoesNotFit) {
  const test::RandomW4 m(3, 256, 64, 31);
  const auto shards = plan(256, 64, {{0, 96}, {96, 256}});
  auto matrices = shard_rows_of(m.view(), shards, ChannelScale::kOwnGroups);
  ASSERT_TRUE(gather(matrices, shards));
  auto stray = matrices;
  stray[0].packed[12] ^= 0x1;  // column 96, held by the second rank
  EXPECT_THAT(gather(stray, shards).error().message, HasSubstr("shard 0, row 0: the code of column 96 is not zero"));
  auto scale = matrices;
  scale[1].scales[0] ^= 1;  // group 1 is on both
  EXPECT_THAT(gather(scale, shards).error().message, HasSubstr("shard 1, row 0: the scales differ"));
  std::vector<RowPart<CanonicalW4>> first = {{matrices[0].view(), shards[0]}};
  EXPECT_THAT(gather_row_parallel(first).error().message, HasSubstr("up to 96, and the matrix has 256"));
  std::vector<RowPart<CanonicalW4>> swapped = {{matrices[1].view(), shards[1]}, {matrices[0].view(), shards[0]}};
  EXPECT_THAT(gather_row_parallel(swapped).error().message, HasSubstr("in rank order"));
  std::vector<ColumnPart<CanonicalW4>> gap = {{column_parallel_shard(m.view(), {0, 1}), {0, 1}},
                                              {column_parallel_shard(m.view(), {2, 3}), {2, 3}}};
  EXPECT_THAT(gather_column_parallel(gap, 3).error().message, HasSubstr("row 1 of 3 is in no shard"));
}

}  // namespace
}  // namespace quadrille::prepare
