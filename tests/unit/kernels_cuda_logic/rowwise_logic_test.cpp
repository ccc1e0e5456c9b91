// SPDX-License-Identifier: Apache-2.0
// The corrected reciprocal of the quantiser and the keys of the router's choice, against division and comparison.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cuda/moe/order_key.h"
#include "kernels/cuda/rowwise/quotient.h"
#include "numerics/act_quant.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {
namespace {

using numerics::bits_of;
using numerics::float_of;

// All significands of x against a grid and a random sample of those of the scale; the device compares all pairs.
TEST(Bf16Quotient, IsTheDivisionForPairsOfSignificands) {
  std::mt19937 random(3);
  for (uint32_t m = 0; m < 128; ++m) {
    const float x = float_of(0x3f800000u | m << 16);
    for (int i = 0; i < 40000; ++i) {
      const uint32_t significand = i < 8192 ? static_cast<uint32_t>(i) << 10 | (i % 3 == 0 ? 0x3ffu : 0u) : random();
      const float scale = float_of(0x3f800000u | (significand & 0x7fffffu));
      ASSERT_EQ(bits_of(bf16_quotient(x, divisor_of(scale))), bits_of(x / scale)) << m << " " << significand;
    }
  }
}

// Every bf16 magnitude as the largest of its row, beside every bf16 that may stand in that row.
TEST(Bf16Quotient, GivesTheCodesOfDivisionOnRealRows) {
  for (uint32_t top = 1; top < 0x7f80; top += 97) {
    const float scale = numerics::act_scale_of_absmax(numerics::bf16_to_f32(static_cast<uint16_t>(top)));
    const Divisor divisor = divisor_of(scale);
    for (uint32_t u = 0; u <= top; u += (u + 512 < top ? 3 : 1)) {
      const float x = numerics::bf16_to_f32(static_cast<uint16_t>(u));
      ASSERT_EQ(numerics::e4m3_from_f32(bf16_quotient(x, divisor)), numerics::act_code(x, scale))
          << std::hex << u << " in a row of " << top;
    }
  }
}

TEST(Bf16Quotient, OfInfiniteRowsIsZeroOrNan) {
  const Divisor divisor = divisor_of(numerics::act_scale_of_absmax(std::numeric_limits<float>::infinity()));
  for (uint32_t u = 0; u < 0x8000; ++u) {
    const float quotient = bf16_quotient(numerics::bf16_to_f32(static_cast<uint16_t>(u)), divisor);
    if (u < 0x7f80) {
      ASSERT_EQ(bits_of(quotient), 0u) << u;
    } else {
      ASSERT_TRUE(numerics::is_nan(quotient)) << u;
    }
  }
}

TEST(OrderKey, OrdersAsTheComparisonOfScores) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> scores = {-inf, -3e38f, -1.0f, -1e-45f, -0.0f, 0.0f, 1e-45f, 0.5f, 1.0f, 3e38f, inf};
  std::mt19937 random(4);
  for (int i = 0; i < 300; ++i) {
    const float x = float_of(random());
    if (!numerics::is_nan(x)) scores.push_back(x);
  }
  for (const float a : scores) {
    EXPECT_EQ(score_of_key(order_key(a)), a);
    EXPECT_GT(order_key(a), kNoKey);
    EXPECT_LT(order_key(a), kAboveAllKeys);
    for (const float b : scores) {
      ASSERT_EQ(order_key(a) < order_key(b), a < b) << a << " " << b;
      ASSERT_EQ(order_key(a) == order_key(b), a == b) << a << " " << b;
    }
  }
  EXPECT_EQ(order_key(std::numeric_limits<float>::quiet_NaN()), order_key(-inf));
  EXPECT_EQ(order_key(-inf), kLowestKey);
  EXPECT_TRUE(comes_after({5, 2}, {5, 1}));
  EXPECT_FALSE(comes_after({5, 1}, {5, 1}));
  EXPECT_TRUE(comes_after({4, 0}, {5, 1}));
}

}  // namespace
}  // namespace quadrille::kernels::cuda
