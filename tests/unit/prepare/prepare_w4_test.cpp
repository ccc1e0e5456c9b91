// SPDX-License-Identifier: Apache-2.0
// Canonical weights into the CPU layout and back: every nibble and scale at its place, stacked matrices, both spellings
// of the codes, errors by row and group, and the same bytes whatever the number of threads.
#include "prepare/prepare_w4.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "numerics/int4.h"

namespace quadrille::prepare {
namespace {

using kernels::Numerics;
using ::testing::HasSubstr;

// A random matrix in checkpoint form; scales of both signs.
struct Sample {
  int64_t n, k, group_size, groups;
  std::vector<int8_t> q;         // [n, k]
  std::vector<uint32_t> packed;  // [n, k/8] uint4b8
  std::vector<uint32_t> int4;    // [n, k/8] two's complement
  std::vector<uint16_t> scales;  // [n, groups]

  Sample(int64_t rows, int64_t columns, int64_t group, unsigned seed)
      : n(rows), k(columns), group_size(group), groups(layout::num_groups(columns, group)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.01f);
    for (int64_t i = 0; i < n * k; ++i) q.push_back(static_cast<int8_t>(static_cast<int>(random() % 16) - 8));
    for (int64_t w = 0; w < n * k / 8; ++w) {
      uint32_t word = 0, signed_word = 0;
      for (int j = 0; j < 8; ++j) {
        const int code = q[static_cast<size_t>(w * 8 + j)];
        word |= static_cast<uint32_t>(code + 8) << (4 * j);
        signed_word |= (static_cast<uint32_t>(code) & 15u) << (4 * j);
      }
      packed.push_back(word);
      int4.push_back(signed_word);
    }
    for (int64_t i = 0; i < n * groups; ++i) scales.push_back(numerics::bf16_from_f32(normal(random)));
  }
  CanonicalW4 canonical() const {
    return {
        .n = n, .k = k, .group_size = group_size, .packed = packed.data(), .codes = nullptr, .scales = scales.data()};
  }
  CanonicalW4 as_int4() const {
    CanonicalW4 matrix = canonical();
    matrix.packed = int4.data();
    matrix.packed_source = kernels::W4Source::kInt4;
    return matrix;
  }
  CanonicalW4 as_codes() const {
    CanonicalW4 matrix = canonical();
    matrix.packed = nullptr;
    matrix.codes = q.data();
    return matrix;
  }
};

bool same_bytes(const PreparedW4& a, const PreparedW4& b) {
  const auto equal = [](const auto& x, const auto& y) {
    return x.size() == y.size() && (x.size() == 0 || std::memcmp(x.data(), y.data(), x.size_bytes()) == 0);
  };
  return equal(a.codes, b.codes) && equal(a.scale_bf16, b.scale_bf16) && equal(a.scale_e4m3, b.scale_e4m3) &&
         equal(a.channel_scale, b.channel_scale);
}

const Sample kSamples[] = {{8, 32, 32, 1},    {16, 128, 128, 2}, {17, 64, 64, 3}, {24, 200, 64, 4},
                           {40, 256, 128, 5}, {8, 40, 0, 6},     {33, 384, 0, 7}, {1, 8, 32, 8}};

TEST(PrepareW4, EveryNibbleAndScaleAtItsPlace) {
  for (const Sample& s : kSamples) {
    auto prepared = prepare_w4(s.canonical(), Numerics::kExact);
    ASSERT_TRUE(prepared) << prepared.error().message;
    EXPECT_TRUE(prepared->tag == layout::kW4Lanes16Tag);
    const layout::W4Lanes16 map{s.n, s.k};
    const layout::ScaleLanes16 scales{s.n, s.groups};
    ASSERT_EQ(prepared->codes.size(), map.num_words());
    for (int64_t place = 0; place < map.num_words() * 8; ++place) {
      const auto [row, column] = map.at(place);
      const int expected = row < s.n && column < s.k ? s.q[static_cast<size_t>(row * s.k + column)] : 0;
      const uint32_t word = prepared->codes[place / 8];
      ASSERT_EQ(numerics::q_of_int4(numerics::nibble(word, static_cast<int>(place % 8))), expected);
    }
    for (int64_t place = 0; place < scales.size(); ++place) {
      const auto [row, group] = scales.at(place);
      const uint16_t expected = row < s.n ? s.scales[static_cast<size_t>(row * s.groups + group)] : 0;
      ASSERT_EQ(prepared->scale_bf16[place], expected);
    }
    EXPECT_EQ(reinterpret_cast<uintptr_t>(prepared->view().codes) % 64, 0u);
    EXPECT_EQ(prepared->view().channel_scale, nullptr);
  }
}

TEST(PrepareW4, ComesBack) {
  for (const Sample& s : kSamples) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      auto prepared = prepare_w4(s.canonical(), numerics);
      ASSERT_TRUE(prepared);
      const CanonicalCopy copy = unprepare(*prepared);
      EXPECT_EQ(copy.packed, s.packed);
      EXPECT_EQ(copy.scales, numerics == Numerics::kExact ? s.scales : std::vector<uint16_t>());
      EXPECT_EQ(copy.group_size, s.group_size);
    }
  }
}

TEST(PrepareW4, VllmSplitsEveryRow) {
  for (const Sample& s : kSamples) {
    auto prepared = prepare_w4(s.canonical(), Numerics::kVllm);
    ASSERT_TRUE(prepared);
    const layout::ScaleLanes16 scales{s.n, s.groups};
    for (int64_t row = 0; row < s.n; ++row) {
      float absmax = 0.0f;
      for (int64_t g = 0; g < s.groups; ++g) {
        absmax = std::max(absmax, std::fabs(numerics::bf16_to_f32(s.scales[static_cast<size_t>(row * s.groups + g)])));
      }
      const float channel = std::max(absmax / 448.0f, 1.0f / (448.0f * 512.0f));
      ASSERT_EQ(prepared->channel_scale[row], channel * 8.0f);
      for (int64_t g = 0; g < s.groups; ++g) {
        const float scale = numerics::bf16_to_f32(s.scales[static_cast<size_t>(row * s.groups + g)]);
        ASSERT_EQ(prepared->scale_e4m3[scales.offset(row, g)],
                  numerics::group_scale8_code(numerics::e4m3_from_f32(scale / channel)));
      }
    }
    for (int64_t row = s.n; row < prepared->channel_scale.size(); ++row) EXPECT_EQ(prepared->channel_scale[row], 0.0f);
  }
}

TEST(PrepareW4, EveryDialectAndAnyThreadsGiveTheSameBytes) {
  ThreadPool pool(4);
  for (const Sample& s : kSamples) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      auto one = prepare_w4(s.canonical(), numerics);
      auto codes = prepare_w4(s.as_codes(), numerics);
      auto int4 = prepare_w4(s.as_int4(), numerics);
      auto many = prepare_w4(s.canonical(), numerics, &pool);
      ASSERT_TRUE(one && codes && int4 && many);
      EXPECT_TRUE(same_bytes(*one, *codes));
      EXPECT_TRUE(same_bytes(*one, *int4));
      EXPECT_TRUE(same_bytes(*one, *many));
    }
  }
  const Sample s(24, 128, 64, 20);
  EXPECT_EQ(s.canonical().source(), kernels::W4Source::kUint4b8);
  EXPECT_EQ(s.as_int4().source(), kernels::W4Source::kInt4);
  EXPECT_EQ(s.as_codes().source(), kernels::W4Source::kInt8);
  // Taken for the wrong dialect the same words are other numbers.
  CanonicalW4 wrong = s.as_int4();
  wrong.packed_source = kernels::W4Source::kUint4b8;
  auto right = prepare_w4(s.canonical(), Numerics::kExact), other = prepare_w4(wrong, Numerics::kExact);
  ASSERT_TRUE(right && other);
  EXPECT_FALSE(same_bytes(*right, *other));
}

// A stack may mix dialects: each part is read as it says.
TEST(PrepareW4, StacksOfSeveralDialects) {
  const Sample a(24, 128, 64, 21), b(40, 128, 64, 22), c(8, 128, 64, 23);
  const CanonicalW4 mixed[] = {a.as_int4(), b.as_codes(), c.canonical()};
  const CanonicalW4 plain[] = {a.canonical(), b.canonical(), c.canonical()};
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    auto one = prepare_w4(mixed, numerics, nullptr), other = prepare_w4(plain, numerics, nullptr);
    ASSERT_TRUE(one && other);
    EXPECT_TRUE(same_bytes(*one, *other));
  }
}

TEST(PrepareW4, UnalignedTensors) {
  const Sample s(24, 128, 64, 9);
  std::vector<std::byte> bytes(s.packed.size() * 4 + 1), scale_bytes(s.scales.size() * 2 + 1);
  std::memcpy(bytes.data() + 1, s.packed.data(), s.packed.size() * 4);
  std::memcpy(scale_bytes.data() + 1, s.scales.data(), s.scales.size() * 2);
  CanonicalW4 shifted = s.canonical();
  shifted.packed = bytes.data() + 1;
  shifted.scales = scale_bytes.data() + 1;
  auto a = prepare_w4(s.canonical(), Numerics::kExact), b = prepare_w4(shifted, Numerics::kExact);
  ASSERT_TRUE(a && b);
  EXPECT_TRUE(same_bytes(*a, *b));
}

TEST(PrepareW4, StacksGateAndUp) {
  const Sample gate(24, 128, 64, 10), up(40, 128, 64, 11);
  const CanonicalW4 parts[] = {gate.canonical(), up.canonical()};
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    auto stacked = prepare_w4(parts, numerics, nullptr);
    ASSERT_TRUE(stacked);
    EXPECT_EQ(stacked->n, 64);
    auto words = gate.packed;
    words.insert(words.end(), up.packed.begin(), up.packed.end());
    EXPECT_EQ(unprepare(*stacked).packed, words);
  }
  // Each row of vllm keeps its own channel scale: it does not know of the rows that it was stacked with.
  auto alone = prepare_w4(up.canonical(), Numerics::kVllm);
  auto stacked = prepare_w4(parts, Numerics::kVllm, nullptr);
  for (int64_t row = 0; row < up.n; ++row) EXPECT_EQ(stacked->channel_scale[24 + row], alone->channel_scale[row]);
}

Error error_of(const CanonicalW4& matrix, Numerics numerics = Numerics::kExact, ThreadPool* pool = nullptr) {
  auto result = prepare_w4(matrix, numerics, pool);
  EXPECT_FALSE(result);
  return result ? Error{} : result.error();
}

TEST(PrepareW4, BadScalesAreNamed) {
  ThreadPool pool(4);
  for (const uint16_t bad : {0x7f80, 0xff80, 0x7fc0, 0xffff}) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      Sample s(200, 256, 64, 12);
      s.scales[150 * 4 + 3] = bad;
      s.scales[37 * 4 + 2] = bad;
      const Error error = error_of(s.canonical(), numerics, &pool);
      EXPECT_EQ(error.code, ErrorCode::kInvalidData);
      EXPECT_THAT(error.message, HasSubstr("row 37, group 2"));
    }
  }
  Sample gate(16, 64, 64, 13), up(16, 64, 64, 14);
  up.scales[5] = 0x7fff;
  const CanonicalW4 parts[] = {gate.canonical(), up.canonical()};
  auto stacked = prepare_w4(parts, Numerics::kExact, nullptr);
  ASSERT_FALSE(stacked);
  EXPECT_THAT(stacked.error().message, HasSubstr("matrix 1, row 5, group 0"));
}

TEST(PrepareW4, BadCodesAndShapes) {
  Sample s(16, 64, 64, 15);
  s.q[3 * 64 + 21] = 8;
  Error error = error_of(s.as_codes());
  EXPECT_EQ(error.code, ErrorCode::kInvalidData);
  EXPECT_THAT(error.message, HasSubstr("row 3, column 21"));

  CanonicalW4 matrix = Sample(16, 64, 64, 16).canonical();
  matrix.group_size = 48;
  EXPECT_EQ(error_of(matrix).code, ErrorCode::kUnsupported);
  matrix.group_size = 64;
  matrix.k = 60;
  EXPECT_EQ(error_of(matrix).code, ErrorCode::kUnsupported);
  matrix.k = 64;
  matrix.packed = nullptr;
  EXPECT_EQ(error_of(matrix).code, ErrorCode::kInvalidArgument);
  CanonicalW4 confused = s.canonical();
  confused.packed_source = kernels::W4Source::kInt8;
  error = error_of(confused);
  EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(error.message, HasSubstr("'codes'"));
  CanonicalW4 both = s.as_int4();
  both.codes = s.q.data();
  EXPECT_THAT(error_of(both).message, HasSubstr("either packed words or codes"));
  const Sample a(16, 64, 64, 17), b(16, 128, 64, 18);
  const CanonicalW4 parts[] = {a.canonical(), b.canonical()};
  auto mixed = prepare_w4(parts, Numerics::kExact, nullptr);
  ASSERT_FALSE(mixed);
  EXPECT_EQ(mixed.error().code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(prepare_w4(std::span<const CanonicalW4>(), Numerics::kExact, nullptr));
}

}  // namespace
}  // namespace quadrille::prepare
