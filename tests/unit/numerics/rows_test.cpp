// SPDX-License-Identifier: Apache-2.0
// Lane sums against a literal transcription of the rule; quantisation, norm, rotary and combine steps against theirs.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "numerics/act_quant.h"
#include "numerics/elementwise.h"
#include "numerics/lane_sum.h"

namespace quadrille::numerics {
namespace {

std::vector<float> random_row(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(count);
  for (float& x : row) x = normal(random);
  return row;
}

// Section 1 word by word: 32 lists, each summed in order, then five halvings.
template <typename Step>
float by_the_rule(size_t count, Step step) {
  std::vector<std::vector<size_t>> lists(32);
  for (size_t i = 0; i < count; ++i) lists[i % 32].push_back(i);
  std::vector<float> sums(32, 0.0f);
  for (size_t l = 0; l < 32; ++l) {
    for (size_t i : lists[l]) sums[l] = step(sums[l], i);
  }
  for (size_t distance : {16u, 8u, 4u, 2u, 1u}) {
    std::vector<float> halved(distance);
    for (size_t l = 0; l < distance; ++l) halved[l] = sums[l] + sums[l + distance];
    sums = halved;
  }
  return sums[0];
}

TEST(LaneSum, FollowsTheRule) {
  for (size_t count : {0u, 1u, 5u, 31u, 32u, 33u, 64u, 100u, 2048u, 2049u}) {
    const auto x = random_row(count, 1 + static_cast<unsigned>(count));
    const auto y = random_row(count, 99 + static_cast<unsigned>(count));
    std::vector<uint16_t> w;
    for (float value : y) w.push_back(bf16_from_f32(value));
    const auto n = static_cast<int64_t>(count);
    EXPECT_EQ(bits_of(lane_sum(x.data(), n)), bits_of(by_the_rule(count, [&](float a, size_t i) { return a + x[i]; })));
    EXPECT_EQ(bits_of(lane_dot_bf16(x.data(), w.data(), n)),
              bits_of(by_the_rule(count, [&](float a, size_t i) { return std::fmaf(x[i], bf16_to_f32(w[i]), a); })));
    EXPECT_EQ(bits_of(lane_sum_squares(x.data(), n)),
              bits_of(by_the_rule(count, [&](float a, size_t i) { return std::fmaf(x[i], x[i], a); })));
  }
}

TEST(LaneSum, OrderMatters) {
  // A row on which a plain left-to-right sum differs: the rule is really a rule.
  const auto x = random_row(1000, 7);
  float plain = 0.0f;
  for (float value : x) plain += value;
  EXPECT_NE(bits_of(plain), bits_of(lane_sum(x.data(), 1000)));
}

TEST(ActQuant, ScaleAndCodes) {
  const float row[] = {0.5f, -1.25f, 3.0f, 0.010009765625f, -0.0030059814453125f, 2.203125f, 0.0f, -3.5f};
  const uint8_t codes[] = {0x68, 0xF2, 0x7C, 0x3A, 0xAC, 0x79, 0x00, 0xFE};
  float absmax = 0.0f;
  for (float x : row) absmax = absmax_step(absmax, x);
  const float scale = act_scale_of_absmax(absmax);
  EXPECT_EQ(scale, 0.0078125f);
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(act_code(row[i], scale), codes[i]) << i;
}

TEST(ActQuant, Edges) {
  EXPECT_EQ(bits_of(act_scale_of_absmax(0.0f)), 0x36924925u);
  EXPECT_EQ(act_code(0.0f, kScaleFloor), 0);
  EXPECT_EQ(act_code(-0.0f, kScaleFloor), 0x80);
  const float nan = std::nanf("");
  EXPECT_EQ(absmax_step(2.0f, nan), 2.0f);
  EXPECT_EQ(absmax_step(0.0f, -3.0f), 3.0f);
  EXPECT_EQ(act_code(nan, 1.0f), kCanonicalNanE4m3);
  // An infinite element: the scale is infinite, the element NaN, its neighbours zero.
  const float scale = act_scale_of_absmax(absmax_step(0.0f, -INFINITY));
  EXPECT_TRUE(std::isinf(scale));
  EXPECT_EQ(act_code(INFINITY, scale), kCanonicalNanE4m3);
  EXPECT_EQ(act_code(5.0f, scale), 0);
}

TEST(Elementwise, Norm) {
  const float r = rms_scale(12.0f, 4, 1e-6f);
  EXPECT_EQ(r, 1.0f / std::sqrt(3.0f + 1e-6f));
  const float x = 1.2345678f, w = 1.7109375f;
  EXPECT_EQ(rms_norm_value(x, r, w, false), (x * r) * w);
  EXPECT_EQ(rms_norm_value(x, r, w, true), round_to_bf16(round_to_bf16(x * r) * w));
}

TEST(Elementwise, RotaryWithoutFma) {
  const float a = 1.1f, b = -2.3f, c = std::cos(0.7f), s = std::sin(0.7f);
  const volatile float ac = a * c, bs = b * s, bc = b * c, as = a * s;
  EXPECT_EQ(rope_first(a, b, c, s, false), ac - bs);
  EXPECT_EQ(rope_second(a, b, c, s, false), bc + as);
  EXPECT_EQ(rope_first(a, b, c, s, true), round_to_bf16(ac - bs));
}

TEST(Elementwise, NanLeavesCanonical) {
  EXPECT_EQ(bits_of(round_output(float_of(0xffc12345u), false)), kCanonicalNanF32);
  EXPECT_EQ(bits_of(round_output(float_of(0xffc12345u), true)), 0x7fff0000u);
}

}  // namespace
}  // namespace quadrille::numerics
