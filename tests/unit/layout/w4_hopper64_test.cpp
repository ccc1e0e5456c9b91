// SPDX-License-Identifier: Apache-2.0
// The Hopper layout by enumeration: every code place is met once, scales lie apart behind the codes, records follow
// each other, and the interleaving of gate and up is undone by its reverse.
#include "layout/w4_hopper64.h"

#include <gtest/gtest.h>

#include <vector>

namespace quadrille::layout {
namespace {

constexpr int64_t kGroups[] = {32, 64, 128, 0};
constexpr std::pair<int64_t, int64_t> kSides[] = {{64, 128}, {8, 8},    {24, 32},   {72, 200},
                                                  {64, 64},  {128, 96}, {192, 384}, {200, 2880}};

std::vector<W4Hopper64> all_maps() {
  std::vector<W4Hopper64> maps;
  for (const auto& [n, k] : kSides) {
    for (const int64_t group : kGroups) {
      maps.push_back({n, k, group, false});
      maps.push_back({n, k, group, true});
    }
  }
  return maps;
}

TEST(W4Hopper64, SizesByHand) {
  const W4Hopper64 exact{200, 2880, 32, false};
  EXPECT_EQ(exact.record_bytes(), 4096 + 64 * 4 * 2);
  EXPECT_EQ(exact.row_blocks(), 4);
  EXPECT_EQ(exact.k_records(), 23);
  EXPECT_EQ(exact.padded_n(), 256);
  EXPECT_EQ(exact.padded_k(), 2944);
  EXPECT_EQ(exact.num_bytes(), 4 * 23 * 4608);
  EXPECT_EQ((W4Hopper64{200, 2880, 64, true}.record_bytes()), 4096 + 64 * 2);
  EXPECT_EQ((W4Hopper64{200, 2880, 128, true}.record_bytes()), 4096 + 64);
  EXPECT_EQ((W4Hopper64{200, 2880, 0, false}.record_bytes()), 4096 + 128);
}

TEST(W4Hopper64, CodesAreABijection) {
  for (const W4Hopper64& map : all_maps()) {
    const int64_t words = map.num_bytes() / 4;
    std::vector<int> met(static_cast<size_t>(words * 8), 0);
    for (int64_t row = 0; row < map.padded_n(); ++row) {
      for (int64_t column = 0; column < map.padded_k(); ++column) {
        const HopperCodePlace place = map.code_place(row, column);
        ASSERT_GE(place.word, 0);
        ASSERT_LT(place.word, words);
        ASSERT_TRUE(place.half == 0 || place.half == 1);
        ASSERT_TRUE(place.b >= 0 && place.b < 4);
        ++met[static_cast<size_t>(place.word * 8 + place.half * 4 + place.b)];
        ASSERT_EQ(map.code_at(place), (RowColumn{row, column}));
      }
    }
    for (int64_t word = 0; word < words; ++word) {
      const bool is_code = word * 4 % map.record_bytes() < kRecordCodeBytes;
      for (int64_t i = 0; i < 8; ++i) ASSERT_EQ(met[static_cast<size_t>(word * 8 + i)], is_code ? 1 : 0);
    }
  }
}

TEST(W4Hopper64, CodesLieAsTheFragmentWantsThem) {
  // Written out once without the map's own arithmetic: thread (w, g, t) holds rows 16w + g and 16w + g + 8, and of
  // every 16 columns the four from 4t on.
  const W4Hopper64 map{64, 128, 128, false};
  for (int w = 0; w < 4; ++w) {
    for (int g = 0; g < 8; ++g) {
      for (int t = 0; t < 4; ++t) {
        for (int i = 0; i < 64; ++i) {
          const int half = i % 2, b = i / 2 % 4, sixteen = i / 8;
          const int64_t word = (sixteen / 4) * 512 + (w * 32 + g * 4 + t) * 4 + sixteen % 4;
          ASSERT_EQ(map.code_place(16 * w + g + 8 * half, 16 * sixteen + 4 * t + b), (HopperCodePlace{word, half, b}));
        }
      }
    }
  }
}

TEST(W4Hopper64, PiecesOfSixteenBytes) {
  const W4Hopper64 map{128, 256, 64, false};
  const int64_t base = map.record_offset(1, 1) / 4;
  for (int piece = 0; piece < 256; ++piece) {
    for (int i = 0; i < 32; ++i) {
      const int half = i % 2, b = i / 2 % 4, j = i / 8;
      const int64_t row = 64 + W4Hopper64::piece_row(piece) + 8 * half;
      const int64_t column = 128 + W4Hopper64::piece_column(piece) + 16 * j + b;
      ASSERT_EQ(map.code_place(row, column), (HopperCodePlace{base + piece * 4 + j, half, b}));
    }
  }
}

TEST(W4Hopper64, RecordsFollowEachOther) {
  for (const W4Hopper64& map : all_maps()) {
    int64_t expected = 0;
    for (int64_t block = 0; block < map.row_blocks(); ++block) {
      for (int64_t record = 0; record < map.k_records(); ++record) {
        ASSERT_EQ(map.record_offset(block, record), expected);
        ASSERT_EQ(expected % 64, 0);
        expected += map.record_bytes();
      }
    }
    EXPECT_EQ(expected, map.num_bytes());
  }
}

TEST(W4Hopper64, ScalesLieApartBehindTheCodes) {
  for (const W4Hopper64& map : all_maps()) {
    const int64_t size = map.vllm ? 1 : 2;
    std::vector<int> met(static_cast<size_t>(map.num_bytes()), 0);
    for (int64_t row = 0; row < map.padded_n(); ++row) {
      for (int64_t record = 0; record < map.k_records(); ++record) {
        for (int group = 0; group < map.groups_per_record(); ++group) {
          const int64_t offset = map.scale_offset(row, record, group);
          const int64_t inside = offset - map.record_offset(row / kRecordRows, record);
          ASSERT_GE(inside, kRecordCodeBytes);
          ASSERT_LE(inside + size, map.record_bytes());
          ASSERT_EQ(offset % size, 0);
          for (int64_t byte = 0; byte < size; ++byte) ++met[static_cast<size_t>(offset + byte)];
        }
      }
    }
    for (int64_t byte = 0; byte < map.num_bytes(); ++byte) {
      const bool is_scale = byte % map.record_bytes() >= kRecordCodeBytes;
      ASSERT_EQ(met[static_cast<size_t>(byte)], is_scale ? 1 : 0) << byte;
    }
  }
}

TEST(W4Hopper64, ScalesOfRowPairsAreNeighbours) {
  for (const W4Hopper64& map : all_maps()) {
    for (int64_t row = 0; row < map.padded_n(); ++row) {
      if (row % 16 >= 8) continue;
      ASSERT_EQ(map.scale_offset(row + 8, 0, 0) - map.scale_offset(row, 0, 0), map.vllm ? 1 : 2);
    }
  }
}

TEST(W4Hopper64, SourceGroups) {
  // The groups that the records ask for are those of the row, in order; one scale a channel is asked for everywhere.
  for (const W4Hopper64& map : all_maps()) {
    int64_t expected = 0;
    for (int64_t record = 0; record < map.k_records(); ++record) {
      for (int group = 0; group < map.groups_per_record(); ++group, ++expected) {
        ASSERT_EQ(map.source_group(record, group), map.group_size == 0 ? 0 : expected);
      }
    }
  }
}

TEST(W4Hopper64, InterleavingComesBack) {
  for (const int64_t width : {8, 16, 40, 768, 1408}) {
    std::vector<int> met(static_cast<size_t>(2 * width), 0);
    for (int part = 0; part < 2; ++part) {
      for (int64_t row = 0; row < width; ++row) {
        const int64_t prepared = interleave_row(part, row);
        ASSERT_GE(prepared, 0);
        ASSERT_LT(prepared, 2 * width);
        ++met[static_cast<size_t>(prepared)];
        const InterleavedRow back = deinterleave_row(prepared);
        ASSERT_EQ(back.part, part);
        ASSERT_EQ(back.row, row);
      }
    }
    for (const int count : met) ASSERT_EQ(count, 1);
  }
  // Gate and up of one channel are rows r and r + 8 of one thread.
  for (int64_t row = 0; row < 64; ++row) ASSERT_EQ(interleave_row(1, row), interleave_row(0, row) + 8);
}

TEST(W4Hopper64, TagsAreTold) {
  EXPECT_FALSE(kW4Hopper64ExactTag == kW4Hopper64VllmTag);
}

static_assert(W4Hopper64{72, 200, 64, false}.code_at(W4Hopper64{72, 200, 64, false}.code_place(71, 199)) ==
              RowColumn{71, 199});

}  // namespace
}  // namespace quadrille::layout
