// SPDX-License-Identifier: Apache-2.0
// Dense matrices into the CPU layout and back, from bf16, f16 and f32.
#include "prepare/prepare_bf16.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "layout/bf16_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp16.h"

namespace quadrille::prepare {
namespace {

using ::testing::HasSubstr;

std::vector<float> random_values(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

template <typename Code, typename Convert>
std::vector<Code> converted(const std::vector<float>& values, Convert convert) {
  std::vector<Code> out;
  for (float value : values) out.push_back(convert(value));
  return out;
}

TEST(PrepareBf16, PlacesAndPadding) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {16, 8}, {17, 31}, {48, 100}}) {
    const auto codes = converted<uint16_t>(random_values(n * k, 1), numerics::bf16_from_f32);
    auto prepared = prepare_bf16({n, k, DenseType::kBf16, codes.data()});
    ASSERT_TRUE(prepared);
    EXPECT_EQ(prepared->num_rounded, 0);
    EXPECT_EQ(unprepare(*prepared), codes);
    const layout::Bf16Lanes16 map{n, k};
    for (int64_t place = 0; place < map.size(); ++place) {
      const auto [row, column] = map.at(place);
      ASSERT_EQ(prepared->view()[place], row < n ? codes[static_cast<size_t>(row * k + column)] : 0);
    }
  }
}

TEST(PrepareBf16, RoundsWiderSources) {
  ThreadPool pool(3);
  const int64_t n = 40, k = 24;
  auto values = random_values(n * k, 2);
  values[0] = 1.5f;  // exact
  auto from_f32 = prepare_bf16({n, k, DenseType::kF32, values.data()}, &pool);
  ASSERT_TRUE(from_f32);
  EXPECT_EQ(unprepare(*from_f32), converted<uint16_t>(values, numerics::bf16_from_f32));
  int64_t inexact = 0;
  for (float value : values) inexact += numerics::round_to_bf16(value) != value ? 1 : 0;
  EXPECT_EQ(from_f32->num_rounded, inexact);

  const auto halves = converted<uint16_t>(values, numerics::f16_from_f32);
  auto from_f16 = prepare_bf16({n, k, DenseType::kF16, halves.data()}, &pool);
  ASSERT_TRUE(from_f16);
  const auto expected = converted<uint16_t>(
      converted<float>(values, [](float v) { return numerics::f16_to_f32(numerics::f16_from_f32(v)); }),
      numerics::bf16_from_f32);
  EXPECT_EQ(unprepare(*from_f16), expected);
}

TEST(PrepareBf16, Stacks) {
  const auto a = converted<uint16_t>(random_values(20 * 8, 3), numerics::bf16_from_f32);
  const auto b = converted<uint16_t>(random_values(5 * 8, 4), numerics::bf16_from_f32);
  const CanonicalDense parts[] = {{20, 8, DenseType::kBf16, a.data()}, {5, 8, DenseType::kBf16, b.data()}};
  auto prepared = prepare_bf16(parts, nullptr);
  ASSERT_TRUE(prepared);
  auto expected = a;
  expected.insert(expected.end(), b.begin(), b.end());
  EXPECT_EQ(unprepare(*prepared), expected);
  EXPECT_EQ(prepared->n, 25);
}

TEST(PrepareBf16, RefusesWhatIsNoWeight) {
  auto values = random_values(4 * 8, 5);
  for (const float bad : {std::nanf(""), INFINITY, 3.4e38f}) {
    values[2 * 8 + 5] = bad;
    auto prepared = prepare_bf16({4, 8, DenseType::kF32, values.data()});
    ASSERT_FALSE(prepared);
    EXPECT_EQ(prepared.error().code, ErrorCode::kInvalidData);
    EXPECT_THAT(prepared.error().message, HasSubstr("row 2, column 5"));
  }
  EXPECT_FALSE(prepare_bf16({0, 8, DenseType::kF32, values.data()}));
  EXPECT_FALSE(prepare_bf16(std::span<const CanonicalDense>(), nullptr));
}

}  // namespace
}  // namespace quadrille::prepare
