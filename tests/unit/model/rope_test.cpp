// SPDX-License-Identifier: Apache-2.0
// Position tables: published YaRN frequencies, linear scaling, and plain values.
#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace quadrille::model {
namespace {

void expect_frequencies(const RopeConfig& rope, int64_t head_dim, const std::map<int, double>& expected) {
  const auto frequencies = inverse_frequencies(rope, head_dim);
  ASSERT_EQ(static_cast<int64_t>(frequencies.size()), head_dim / 2);
  // The expected values carry nine digits.
  for (const auto& [i, value] : expected) EXPECT_NEAR(frequencies[i], value, 1e-8 * value) << i;
}

TEST(Rope, YarnFrequencies) {
  RopeConfig rope;
  rope.type = "yarn";
  rope.theta = 1e4;
  rope.factor = 40;
  rope.original_positions = 4096;
  expect_frequencies(
      rope, 64,
      {{0, 1.0}, {8, 0.1}, {12, 0.0268793601}, {16, 0.0055}, {20, 7.90569415e-4}, {24, 2.5e-5}, {31, 3.33380358e-6}});
  rope.theta = 1.6e5;
  rope.factor = 16;
  rope.original_positions = 65536;
  expect_frequencies(
      rope, 64,
      {{8, 0.05}, {12, 0.0111803399}, {16, 0.002265625}, {20, 2.96977778e-4}, {24, 1.953125e-5}, {31, 5.68052904e-7}});
  rope.theta = 1.5e5;
  rope.factor = 32;
  rope.original_positions = 4096;
  rope.truncate = false;
  expect_frequencies(
      rope, 64,
      {{8, 0.0508132748}, {12, 0.00679495949}, {16, 4.56483919e-4}, {20, 1.81883367e-5}, {31, 3.02351143e-7}});
}

TEST(Rope, LinearDividesEveryFrequency) {
  RopeConfig rope;
  const auto plain = inverse_frequencies(rope, 32);
  rope.type = "linear";
  rope.factor = 4;
  const auto scaled = inverse_frequencies(rope, 32);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_DOUBLE_EQ(scaled[i], plain[i] / 4);
}

TEST(Rope, TablesAreTheRoundedCosines) {
  RopeConfig rope;
  rope.theta = 1e6;
  rope.attention_factor = 1.25;
  ThreadPool pool(2);
  const RopeTables tables = make_rope_tables(rope, 8, 1000, &pool);
  ASSERT_EQ(tables.num_positions, 1000);
  ASSERT_EQ(tables.cos.size(), 4000u);
  for (const int64_t p : {0, 1, 257, 999}) {
    for (int64_t i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(p) * std::pow(1e6, -2.0 * static_cast<double>(i) / 8);
      EXPECT_EQ(tables.cos[p * 4 + i], static_cast<float>(1.25 * std::cos(angle)));
      EXPECT_EQ(tables.sin[p * 4 + i], static_cast<float>(1.25 * std::sin(angle)));
    }
  }
}

}  // namespace
}  // namespace quadrille::model
