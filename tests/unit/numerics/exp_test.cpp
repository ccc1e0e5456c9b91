// SPDX-License-Identifier: Apache-2.0
// exp over all of fp32: every argument between -104 and 89 whose result is not trivially 1, against double precision
// (whose own error is 2^-29 ulp of fp32 and below).
#include "numerics/exp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "core/thread_pool.h"
#include "numerics/silu.h"

namespace quadrille::numerics {
namespace {

#if defined(__x86_64__)
#define QD_TEST_FMA __attribute__((target("avx2,fma")))
#else
#define QD_TEST_FMA
#endif

// The body once for plain x86-64 (fma through libm) and once with the instruction.
void fill_plain(uint32_t first, int count, uint32_t stride, float* out) {
  for (int i = 0; i < count; ++i) out[i] = exp_f32(float_of(first + static_cast<uint32_t>(i) * stride));
}
QD_TEST_FMA void fill_fma(uint32_t first, int count, uint32_t stride, float* out) {
  for (int i = 0; i < count; ++i) out[i] = exp_f32(float_of(first + static_cast<uint32_t>(i) * stride));
}

// |found - e^x| in units of the last place of e^x (2^-149 where it is subnormal).
double error_in_ulp(float x, float found) {
  const double truth = std::exp(static_cast<double>(x));
  const int64_t exponent = static_cast<int64_t>(std::bit_cast<uint64_t>(truth) >> 52) - 1023 - 23;
  const int64_t unit = exponent > -149 ? exponent : -149;
  const double per_unit = std::bit_cast<double>(static_cast<uint64_t>(1023 - unit) << 52);
  return std::fabs(static_cast<double>(found) - truth) * per_unit;
}

constexpr uint32_t kTiny = 0x32800000u;  // 2^-26: exp of anything smaller is 1 to less than half an ulp
constexpr uint32_t kHuge = 0x42d00000u;  // 104

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
constexpr uint32_t kStride = 61;
#else
constexpr uint32_t kStride = 1;
#endif

// Largest error over arguments [first, last) of one sign.
double worst_error(uint32_t first, uint32_t last, uint32_t stride, bool use_fma) {
  constexpr int kBatch = 4096;
  float out[kBatch];
  double worst = 0;
  for (uint32_t u = first; (u & 0x7fffffffu) < (last & 0x7fffffffu); u += kBatch * stride) {
    use_fma ? fill_fma(u, kBatch, stride, out) : fill_plain(u, kBatch, stride, out);
    for (int i = 0; i < kBatch; ++i) {
      const float x = float_of(u + static_cast<uint32_t>(i) * stride);
      if (x > 88.72f || std::fabs(x) > 104.0f) continue;  // overflow is looked at below
      worst = std::max(worst, error_in_ulp(x, out[i]));
    }
  }
  return worst;
}

double worst_of_all(uint32_t stride, bool use_fma) {
  constexpr int64_t kParts = 64;
  double worst[2 * kParts];
  ThreadPool pool;
  pool.run(2 * kParts, [&](int64_t part) {
    const uint32_t sign = part < kParts ? 0u : 0x80000000u;
    const uint32_t step = (kHuge - kTiny) / kParts + 1;
    const uint32_t first = kTiny + static_cast<uint32_t>(part % kParts) * step;
    worst[part] = worst_error(first | sign, (first + step) | sign, stride, use_fma);
  });
  return *std::max_element(worst, worst + 2 * kParts);
}

TEST(Exp, AtMostOneUlpEverywhere) {
#if defined(__x86_64__)
  const bool use_fma = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#else
  const bool use_fma = true;
#endif
  const double worst = worst_of_all(use_fma ? kStride : 61, use_fma);
  EXPECT_LE(worst, 1.0);
  EXPECT_GT(worst, 0.5);  // the measure itself works: no fp32 exp is better than half an ulp
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(Exp, OverflowsWhereTheResultDoes) {
  // 88.72284 is the last argument whose exponential is below 2^128 - 2^103.
  for (uint32_t u = bits_of(88.72f); u <= bits_of(89.5f); ++u) {
    const float x = float_of(u);
    const double truth = std::exp(static_cast<double>(x));
    const float found = exp_f32(x);
    if (truth >= 0x1p128) {
      ASSERT_TRUE(std::isinf(found)) << x;
    } else {
      ASSERT_LE(std::isinf(found) ? 0x1p128 - truth : std::fabs(found - truth), 0x1p104) << x;
    }
  }
}

TEST(Exp, EndsAndSpecials) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(bits_of(exp_f32(0.0f)), bits_of(1.0f));
  EXPECT_EQ(bits_of(exp_f32(-0.0f)), bits_of(1.0f));
  EXPECT_EQ(exp_f32(infinity), infinity);
  EXPECT_EQ(bits_of(exp_f32(-infinity)), 0u);
  EXPECT_EQ(exp_f32(1e30f), infinity);
  EXPECT_EQ(bits_of(exp_f32(-1e30f)), 0u);
  EXPECT_EQ(bits_of(exp_f32(float_of(0xffc00001u))), kCanonicalNanF32);
  EXPECT_EQ(bits_of(exp_f32(float_of(1u))), bits_of(1.0f));
  // Subnormal results are kept, down to the last one.
  EXPECT_EQ(bits_of(exp_f32(-103.28f)), 1u);
  EXPECT_GT(exp_f32(-90.0f), 0.0f);
}

TEST(Exp, TinyArgumentsGiveOneToHalfAnUlp) {
  for (uint32_t u = 1; u < kTiny; u += 4099) {
    ASSERT_LE(error_in_ulp(float_of(u), exp_f32(float_of(u))), 1.0);
    ASSERT_LE(error_in_ulp(-float_of(u), exp_f32(-float_of(u))), 1.0);
  }
}

TEST(Silu, FollowsItsFormula) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (float x = -120.0f; x < 120.0f; x += 0.37f) {
    EXPECT_EQ(bits_of(silu(x)), bits_of(x / (1.0f + exp_f32(-x))));
    EXPECT_EQ(bits_of(sigmoid(x)), bits_of(1.0f / (1.0f + exp_f32(-x))));
    const double truth = x / (1.0 + std::exp(-static_cast<double>(x)));
    // exp within 1 ulp, sum and quotient rounded once each: 2.5 units of 2^-23, or a subnormal step.
    // Where exp(-x) overflows the result is -0: |x| / 2^128 is lost.
    const double lost = x < -88.0f ? std::fabs(x) * 0x1p-128 : 0.0;
    EXPECT_LE(std::fabs(silu(x) - truth), std::fabs(truth) * 2.5 * 0x1p-23 + 0x1p-149 + lost) << x;
  }
  EXPECT_EQ(bits_of(silu(float_of(0x7fc00000u))), kCanonicalNanF32);
  EXPECT_EQ(bits_of(silu(-infinity)), kCanonicalNanF32);
  EXPECT_EQ(silu(infinity), infinity);
  EXPECT_EQ(bits_of(silu(-200.0f)), 0x80000000u);
  EXPECT_EQ(sigmoid(infinity), 1.0f);
  EXPECT_EQ(bits_of(sigmoid(-infinity)), 0u);
}

}  // namespace
}  // namespace quadrille::numerics
