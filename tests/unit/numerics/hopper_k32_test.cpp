// SPDX-License-Identifier: Apache-2.0
// The tensor-core model: the probes that were measured on the hardware, its special values, and what the steps imply.
#include "numerics/hopper_k32.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

namespace quadrille::numerics {
namespace {

using Row = std::array<uint8_t, 32>;

// A row of zeros with values at its first places.
Row row_of(std::initializer_list<float> values) {
  Row row{};
  size_t i = 0;
  for (float value : values) row[i++] = e4m3_from_f32(value);
  return row;
}

float step(const Row& a, const Row& b, float c) {
  return hopper_k32(a.data(), b.data(), c);
}

TEST(HopperK32, MeasuredProbes) {
  const Row one = row_of({1.0f});
  const Row unit = row_of({1.0f, 0x1p-7f});
  const Row small = row_of({1.0f, 0x1p-6f});    // second product 2^-13
  const Row smaller = row_of({1.0f, 0x1p-7f});  // second product 2^-14
  EXPECT_EQ(step(unit, small, 0.0f), 1.0f + 0x1p-13f);
  EXPECT_EQ(step(unit, smaller, 0.0f), 1.0f);
  const Row two_small = row_of({1.0f, 0x1p-7f, 0x1p-7f});
  EXPECT_EQ(step(two_small, row_of({1.0f, 0x1p-7f, 0x1p-7f}), 0.0f), 1.0f);  // each is dropped before the sum
  EXPECT_EQ(step(unit, row_of({1.0f, -0x1p-7f}), 0.0f), 1.0f);
  const Row zero{};
  EXPECT_EQ(step(zero, zero, 1.0f + 0x1p-14f), 1.0f);
  EXPECT_EQ(step(one, one, 1.99f * 0x1p-14f), 1.0f);
  EXPECT_EQ(bits_of(step(unit, smaller, -1.0f)), 0u);
}

TEST(HopperK32, ZeroIsPositive) {
  const Row zero{};
  const Row one = row_of({1.0f, 1.0f});
  EXPECT_EQ(bits_of(step(zero, zero, -0.0f)), 0u);
  EXPECT_EQ(bits_of(step(one, row_of({1.0f, -1.0f}), 0.0f)), 0u);
  Row negative_zero;
  negative_zero.fill(0x80);
  EXPECT_EQ(bits_of(step(negative_zero, one, -0.0f)), 0u);
}

TEST(HopperK32, NanAndInfinity) {
  Row nan{};
  nan[17] = 0xff;
  const Row zero{};
  EXPECT_EQ(bits_of(step(nan, zero, 0.0f)), kCanonicalNanF32);
  EXPECT_EQ(bits_of(step(zero, nan, 1.0f)), kCanonicalNanF32);
  EXPECT_EQ(bits_of(step(zero, zero, float_of(0xffc00001u))), kCanonicalNanF32);
  EXPECT_EQ(bits_of(step(nan, zero, INFINITY)), kCanonicalNanF32);
  EXPECT_EQ(step(row_of({1.0f}), row_of({1.0f}), INFINITY), INFINITY);
  EXPECT_EQ(step(row_of({1.0f}), row_of({1.0f}), -INFINITY), -INFINITY);
}

TEST(HopperK32, ProductsAreNotNormalised) {
  // 1.875 * 1.875 and 1.75 * 1.75 are above 2, yet their exponent counts as 0: 2^-13 beside them survives.
  EXPECT_EQ(step(row_of({1.875f, 1.75f, 0x1p-7f}), row_of({1.875f, -1.75f, 0x1p-6f}), 0.0f), 0.453125f + 0x1p-13f);
}

TEST(HopperK32, RawAndNormalisedCodesDiffer) {
  // A factor q as the byte of q * 2^-9 keeps exponent -6 whatever q is; as a normalised e4m3 number it has its own, and
  // other bits are dropped. Both are within their units of the true sum, but not equal: the operand is part of the
  // rule.
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0.0f, 60.0f);
  int differing = 0;
  for (int round = 0; round < 4000; ++round) {
    Row a, raw, normalised;
    for (size_t i = 0; i < 32; ++i) {
      const int q = static_cast<int>(random() % 16) - 8;
      a[i] = e4m3_from_f32(normal(random));
      raw[i] = exact_weight_code(q);
      normalised[i] = e4m3_from_f32(static_cast<float>(q));
    }
    differing += step(a, raw, 0.0f) * 512.0f != step(a, normalised, 0.0f) ? 1 : 0;
  }
  EXPECT_GT(differing, 0);
  EXPECT_LT(differing, 4000);
}

TEST(HopperK32, TheOrderInsideAStepDoesNotMatter) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    Row a, b;
    for (size_t i = 0; i < 32; ++i) {
      a[i] = static_cast<uint8_t>(random() % 127 | (random() & 0x80));
      b[i] = static_cast<uint8_t>(random() % 127 | (random() & 0x80));
    }
    const float before = step(a, b, 3.0f);
    std::array<size_t, 32> order;
    for (size_t i = 0; i < 32; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    Row c, d;
    for (size_t i = 0; i < 32; ++i) c[i] = a[order[i]], d[i] = b[order[i]];
    ASSERT_EQ(bits_of(step(c, d, 3.0f)), bits_of(before));
    ASSERT_EQ(bits_of(before) & 0x3ffu, 0u);
  }
}

TEST(HopperK32, ErrorStaysWithinItsUnits) {
  // 33 terms lose less than one unit 2^(top - 13) each, and the result less than one unit of its own.
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    Row a, b;
    double truth = 0, largest = 0;
    for (size_t i = 0; i < 32; ++i) {
      a[i] = static_cast<uint8_t>(random() % 127 | (random() & 0x80));
      b[i] = static_cast<uint8_t>(random() % 127 | (random() & 0x80));
      truth += double{e4m3_to_f32(a[i])} * e4m3_to_f32(b[i]);
      if (e4m3_significand(a[i]) * e4m3_significand(b[i]) != 0) {
        largest = std::max(largest, std::ldexp(1.0, e4m3_exponent(a[i]) + e4m3_exponent(b[i])));
      }
    }
    const double found = step(a, b, 0.0f);
    ASSERT_LE(std::fabs(found - truth), 33 * largest * 0x1p-13 + std::fabs(truth) * 0x1p-12);
  }
}

TEST(HopperK32, ChainFeedsEachStepTheLast) {
  std::mt19937 random(7);
  std::array<uint8_t, 128> a, b;
  for (size_t i = 0; i < 128; ++i) {
    a[i] = static_cast<uint8_t>(random() % 127);
    b[i] = static_cast<uint8_t>(random() % 127 | (random() & 0x80));
  }
  float c = 0.0f;
  for (int s = 0; s < 4; ++s) c = hopper_k32(&a[static_cast<size_t>(32 * s)], &b[static_cast<size_t>(32 * s)], c);
  EXPECT_EQ(bits_of(hopper_chain(a.data(), b.data(), 4, 0.0f)), bits_of(c));
}

TEST(HopperK32, OverflowAndSubnormalAccumulators) {
  const Row zero{};
  // 13 fraction bits, toward zero, down into the fp32 subnormals.
  EXPECT_EQ(bits_of(step(zero, zero, float_of(0x00800001u))), 0x00800000u);
  EXPECT_EQ(bits_of(step(zero, zero, float_of(0x7f7fffffu))), 0x7f7ffc00u);
  EXPECT_EQ(step(row_of({448.0f}), row_of({448.0f}), 1.0f), 200704.0f);
}

}  // namespace
}  // namespace quadrille::numerics
