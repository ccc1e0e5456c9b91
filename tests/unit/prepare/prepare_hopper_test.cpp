// SPDX-License-Identifier: Apache-2.0
// The Hopper preparation on the CPU against a slow writer that follows the layout map value by value: every byte, every
// group size and source dialect, one and two parts, padding; round trips; errors by name.
#include "prepare/prepare_hopper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/hopper_codes.h"
#include "numerics/int4.h"

namespace quadrille::prepare {
namespace {

using kernels::Numerics;
using kernels::W4Source;
using ::testing::HasSubstr;

constexpr Numerics kBoth[] = {Numerics::kExact, Numerics::kVllm};
constexpr W4Source kSources[] = {W4Source::kUint4b8, W4Source::kInt4, W4Source::kInt8};

// A random matrix in all three dialects; scales of both signs, some zero.
struct Sample {
  int64_t n, k, group_size, groups;
  std::vector<int8_t> q;            // [n, k]
  std::vector<uint32_t> packed[2];  // [n, k/8] uint4b8, two's complement
  std::vector<uint16_t> scales;     // [n, groups]

  Sample(int64_t rows, int64_t columns, int64_t group, unsigned seed)
      : n(rows), k(columns), group_size(group), groups(layout::num_groups(columns, group)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.01f);
    for (int64_t i = 0; i < n * k; ++i) q.push_back(static_cast<int8_t>(static_cast<int>(random() % 16) - 8));
    for (int64_t w = 0; w < n * k / 8; ++w) {
      uint32_t words[2] = {};
      for (int j = 0; j < 8; ++j) {
        const int value = q[static_cast<size_t>(w * 8 + j)];
        words[0] |= static_cast<uint32_t>(value + 8) << (4 * j);
        words[1] |= (static_cast<uint32_t>(value) & 15u) << (4 * j);
      }
      for (int i : {0, 1}) packed[i].push_back(words[i]);
    }
    for (int64_t i = 0; i < n * groups; ++i) {
      scales.push_back(random() % 20 == 0 ? uint16_t{0} : numerics::bf16_from_f32(normal(random)));
    }
  }
  CanonicalW4 canonical(W4Source source = W4Source::kUint4b8) const {
    CanonicalW4 matrix{.n = n, .k = k, .group_size = group_size, .scales = scales.data()};
    matrix.packed_source = source;
    if (source == W4Source::kInt8) {
      matrix.codes = q.data();
    } else {
      matrix.packed = packed[source == W4Source::kInt4 ? 1 : 0].data();
    }
    return matrix;
  }
  int8_t at(int64_t row, int64_t column) const { return q[static_cast<size_t>(row * k + column)]; }
  uint16_t scale(int64_t row, int64_t group) const { return scales[static_cast<size_t>(row * groups + group)]; }
};

// Row `row` of the prepared matrix as its source; null behind n.
struct Source {
  const Sample* sample;
  int64_t row;
};
Source source_of(const std::vector<const Sample*>& parts, int64_t row) {
  if (parts.size() == 1) return {row < parts[0]->n ? parts[0] : nullptr, row};
  const int64_t block = row / 16, inside = row % 16;
  return {block * 8 < parts[0]->n ? parts[static_cast<size_t>(inside / 8)] : nullptr, block * 8 + inside % 8};
}

float channel_of(const Source& source) {
  float absmax = 0.0f;
  for (int64_t g = 0; g < source.sample->groups; ++g) {
    absmax = std::max(absmax, std::fabs(numerics::bf16_to_f32(source.sample->scale(source.row, g))));
  }
  return std::max(absmax / 448.0f, 1.0f / (448.0f * 512.0f));
}

// What the map says, value by value.
PreparedHopperW4 by_the_map(const std::vector<const Sample*>& parts, Numerics numerics) {
  const bool vllm = numerics == Numerics::kVllm;
  PreparedHopperW4 out;
  out.numerics = numerics;
  out.map = {parts[0]->n * static_cast<int64_t>(parts.size()), parts[0]->k, parts[0]->group_size, vllm};
  const layout::W4Hopper64& map = out.map;
  out.weights.assign(static_cast<size_t>(map.num_bytes()), 0xee);
  std::vector<int8_t> codes(out.weights.size() * 2);
  for (int64_t row = 0; row < map.padded_n(); ++row) {
    const Source source = source_of(parts, row);
    for (int64_t column = 0; column < map.padded_k(); ++column) {
      const auto place = map.code_place(row, column);
      codes[static_cast<size_t>(place.word * 8 + place.half * 4 + place.b)] =
          source.sample != nullptr && column < map.k ? source.sample->at(source.row, column) : int8_t{0};
    }
    const float channel = source.sample != nullptr ? channel_of(source) : 0.0f;
    if (vllm) out.channel_scale.push_back(channel * 8.0f);
    const int64_t per_record = map.group_size == 0 ? 1 : 128 / map.group_size;
    for (int64_t i = 0; i < map.k_records() * per_record; ++i) {
      uint8_t* to = out.weights.data() + map.scale_offset(row, i / per_record, static_cast<int>(i % per_record));
      const int64_t group = map.group_size == 0 ? 0 : i;
      const bool inside = source.sample != nullptr && group * map.group_size < map.k;
      const uint16_t scale = inside ? source.sample->scale(source.row, group) : uint16_t{0x8000};
      if (vllm) {
        const uint8_t code = inside ? numerics::e4m3_from_f32(numerics::bf16_to_f32(scale) / channel) : uint8_t{0};
        *to = inside ? numerics::e4m3_from_f32(numerics::e4m3_to_f32(code) / 8.0f) : uint8_t{0};
      } else {
        std::memcpy(to, &scale, 2);
      }
    }
  }
  for (int64_t word = 0; word < map.num_bytes() / 4; ++word) {
    if (word * 4 % map.record_bytes() >= layout::kRecordCodeBytes) continue;
    const int8_t* q = codes.data() + word * 8;
    const uint32_t packed = vllm ? numerics::pack_vllm_word(q, q + 4) : numerics::pack_exact_word(q, q + 4);
    std::memcpy(out.weights.data() + word * 4, &packed, 4);
  }
  return out;
}

void expect_same(const PreparedHopperW4& found, const PreparedHopperW4& expected) {
  ASSERT_EQ(found.weights.size(), expected.weights.size());
  const auto [a, b] = std::mismatch(found.weights.begin(), found.weights.end(), expected.weights.begin());
  ASSERT_TRUE(a == found.weights.end()) << "byte " << a - found.weights.begin() << ": " << int{*a} << ", expected "
                                        << int{*b};
  ASSERT_EQ(found.channel_scale, expected.channel_scale);
}

struct Shape {
  int64_t n, k;
};
constexpr Shape kShapes[] = {{8, 32},  {24, 64},   {64, 128},  {72, 200},  {40, 96},
                             {128, 8}, {16, 2880}, {136, 384}, {704, 128}, {640, 40}};
constexpr int64_t kGroups[] = {32, 64, 128, 0};

TEST(PrepareHopper, EveryByteIsWhereTheMapSays) {
  unsigned seed = 0;
  for (const Shape& shape : kShapes) {
    for (const int64_t group : kGroups) {
      const Sample gate(shape.n, shape.k, group, ++seed), up(shape.n, shape.k, group, ++seed);
      for (const Numerics numerics : kBoth) {
        SCOPED_TRACE(testing::Message() << shape.n << "x" << shape.k << " group " << group << " numerics "
                                        << static_cast<int>(numerics));
        const CanonicalW4 parts[] = {gate.canonical(), up.canonical()};
        auto one = prepare_hopper_w4(std::span(parts, 1), numerics), two = prepare_hopper_w4(parts, numerics);
        ASSERT_TRUE(one && two);
        expect_same(*one, by_the_map({&gate}, numerics));
        expect_same(*two, by_the_map({&gate, &up}, numerics));
        EXPECT_EQ(one->tag == layout::kW4Hopper64VllmTag, numerics == Numerics::kVllm);
        EXPECT_EQ(one->tag == layout::kW4Hopper64ExactTag, numerics == Numerics::kExact);
      }
    }
  }
}

TEST(PrepareHopper, RowsOfAnyCount) {
  for (const int64_t n : {1, 7, 63, 65}) {
    const Sample s(n, 160, 64, static_cast<unsigned>(n));
    const CanonicalW4 matrix = s.canonical();
    auto prepared = prepare_hopper_w4(std::span(&matrix, 1), Numerics::kExact);
    ASSERT_TRUE(prepared);
    expect_same(*prepared, by_the_map({&s}, Numerics::kExact));
  }
}

TEST(PrepareHopper, DialectsAndThreadsGiveTheSameBytes) {
  ThreadPool pool(3);
  for (const int64_t group : kGroups) {
    const Sample gate(72, 288, group, 1), up(72, 288, group, 2);
    for (const Numerics numerics : kBoth) {
      const CanonicalW4 first[] = {gate.canonical(), up.canonical()};
      auto expected = prepare_hopper_w4(first, numerics);
      ASSERT_TRUE(expected);
      for (const W4Source source : kSources) {
        const CanonicalW4 parts[] = {gate.canonical(source), up.canonical(source)};
        auto found = prepare_hopper_w4(parts, numerics, &pool);
        ASSERT_TRUE(found);
        expect_same(*found, *expected);
      }
    }
  }
}

TEST(PrepareHopper, ComesBack) {
  for (const Shape& shape : kShapes) {
    for (const int64_t group : kGroups) {
      const Sample gate(shape.n, shape.k, group, 3), up(shape.n, shape.k, group, 4);
      for (const Numerics numerics : kBoth) {
        const CanonicalW4 parts[] = {gate.canonical(), up.canonical()};
        auto one = prepare_hopper_w4(std::span(parts + 1, 1), numerics), two = prepare_hopper_w4(parts, numerics);
        ASSERT_TRUE(one && two);
        std::vector<CanonicalCopy> back = unprepare_hopper(*two, 2);
        for (CanonicalCopy& copy : unprepare_hopper(*one, 1)) back.push_back(std::move(copy));
        ASSERT_EQ(back.size(), 3u);
        for (size_t i = 0; i < 3; ++i) {
          const Sample& source = i == 0 ? gate : up;
          EXPECT_EQ(back[i].n, source.n);
          EXPECT_EQ(back[i].k, source.k);
          EXPECT_EQ(back[i].group_size, group);
          EXPECT_EQ(back[i].packed, source.packed[0]);
          EXPECT_EQ(back[i].scales, numerics == Numerics::kExact ? source.scales : std::vector<uint16_t>());
        }
      }
    }
  }
}

TEST(PrepareHopper, PaddingByHand) {
  // 72 rows of 200: the second row block has 8 rows, the second record 72 columns, that is two groups of 64 and a bit.
  const Sample s(72, 200, 64, 5);
  const CanonicalW4 matrix = s.canonical();
  for (const Numerics numerics : kBoth) {
    auto prepared = prepare_hopper_w4(std::span(&matrix, 1), numerics);
    ASSERT_TRUE(prepared);
    const layout::W4Hopper64& map = prepared->map;
    for (int64_t row = 72; row < 128; ++row) {
      for (int64_t record = 0; record < 2; ++record) {
        for (int group = 0; group < 2; ++group) {
          const uint8_t* at = prepared->weights.data() + map.scale_offset(row, record, group);
          EXPECT_EQ(at[0], 0);
          if (numerics == Numerics::kExact) {
            EXPECT_EQ(at[1], 0x80);
          }
        }
      }
      if (numerics == Numerics::kVllm) {
        EXPECT_EQ(prepared->channel_scale[static_cast<size_t>(row)], 0.0f);
      }
    }
    EXPECT_EQ(prepared->channel_scale.size(), numerics == Numerics::kVllm ? 128u : 0u);
    // Columns 208..211 of rows 0 and 8 lie behind k.
    uint32_t word = 1;
    std::memcpy(&word, prepared->weights.data() + map.code_place(0, 208).word * 4, 4);
    EXPECT_EQ(word, 0u);
  }
  // 2880 columns are 22.5 records: the last has one group of 64, and one scale a channel is met in all of them.
  const Sample half(8, 2880, 64, 6), channel(8, 2880, 0, 7);
  const CanonicalW4 half_matrix = half.canonical(), channel_matrix = channel.canonical();
  auto a = prepare_hopper_w4(std::span(&half_matrix, 1), Numerics::kExact);
  auto b = prepare_hopper_w4(std::span(&channel_matrix, 1), Numerics::kExact);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(a->map.k_records(), 23);
  uint16_t scale = 0;
  std::memcpy(&scale, a->weights.data() + a->map.scale_offset(3, 22, 0), 2);
  EXPECT_EQ(scale, half.scale(3, 44));
  std::memcpy(&scale, a->weights.data() + a->map.scale_offset(3, 22, 1), 2);
  EXPECT_EQ(scale, 0x8000);
  for (int64_t record = 0; record < 23; ++record) {
    std::memcpy(&scale, b->weights.data() + b->map.scale_offset(5, record, 0), 2);
    EXPECT_EQ(scale, channel.scale(5, 0));
  }
}

TEST(PrepareHopper, BadScalesAndCodesAreNamed) {
  ThreadPool pool(3);
  for (const uint16_t bad : {0x7f80, 0xff80, 0x7fc0, 0xffff}) {
    for (const Numerics numerics : kBoth) {
      Sample s(200, 256, 64, 8);
      s.scales[150 * 4 + 3] = bad;
      s.scales[37 * 4 + 2] = bad;
      const CanonicalW4 matrix = s.canonical();
      auto result = prepare_hopper_w4(std::span(&matrix, 1), numerics, &pool);
      ASSERT_FALSE(result);
      EXPECT_EQ(result.error().code, ErrorCode::kInvalidData);
      EXPECT_THAT(result.error().message, HasSubstr("row 37, group 2"));
    }
  }
  Sample gate(16, 64, 64, 9), up(16, 64, 64, 10);
  up.scales[5] = 0x7fff;
  const CanonicalW4 scales[] = {gate.canonical(), up.canonical()};
  auto result = prepare_hopper_w4(scales, Numerics::kExact);
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr("matrix 1, row 5, group 0"));
  for (const int8_t bad : {8, -9, 127, -128}) {
    Sample s(16, 64, 64, 11);
    s.q[3 * 64 + 21] = bad;
    const CanonicalW4 matrix = s.canonical(W4Source::kInt8);
    auto codes = prepare_hopper_w4(std::span(&matrix, 1), Numerics::kVllm);
    ASSERT_FALSE(codes);
    EXPECT_EQ(codes.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(codes.error().message, HasSubstr("row 3, column 21"));
  }
}

TEST(PrepareHopper, BadShapes) {
  const auto code_of = [](std::span<const CanonicalW4> parts) {
    auto result = prepare_hopper_w4(parts, Numerics::kExact);
    EXPECT_FALSE(result);
    return result ? ErrorCode::kIo : result.error().code;
  };
  const Sample a(16, 64, 64, 12), b(24, 64, 64, 13), c(12, 64, 64, 14), d(16, 128, 64, 15);
  const CanonicalW4 unequal[] = {a.canonical(), b.canonical()};
  EXPECT_EQ(code_of(unequal), ErrorCode::kUnsupported);
  const CanonicalW4 uneven[] = {c.canonical(), c.canonical()};
  EXPECT_EQ(code_of(uneven), ErrorCode::kUnsupported);
  const CanonicalW4 mixed[] = {a.canonical(), d.canonical()};
  EXPECT_EQ(code_of(mixed), ErrorCode::kInvalidArgument);
  const CanonicalW4 three[] = {a.canonical(), a.canonical(), a.canonical()};
  EXPECT_EQ(code_of(three), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of({}), ErrorCode::kInvalidArgument);
  CanonicalW4 group = a.canonical();
  group.group_size = 48;
  EXPECT_EQ(code_of(std::span(&group, 1)), ErrorCode::kUnsupported);
  CanonicalW4 k = a.canonical();
  k.k = 60;
  EXPECT_EQ(code_of(std::span(&k, 1)), ErrorCode::kUnsupported);
  CanonicalW4 none = a.canonical();
  none.packed = nullptr;
  EXPECT_EQ(code_of(std::span(&none, 1)), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace quadrille::prepare
