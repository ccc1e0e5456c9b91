// SPDX-License-Identifier: Apache-2.0
// Log-probabilities, and the exp and log below them, against long double.
#include "engine/logprobs.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "engine/reproducible_math.h"

namespace quadrille::engine {
namespace {

TEST(ReproducibleMath, ExpIsCloseToTheTruth) {
  EXPECT_EQ(reproducible_exp(0), 1.0);
  EXPECT_EQ(reproducible_exp(-0.0), 1.0);
  EXPECT_EQ(reproducible_exp(-std::numeric_limits<double>::infinity()), 0.0);
  EXPECT_EQ(reproducible_exp(-709), 0.0);
  std::mt19937_64 rng(1);
  for (int i = 0; i < 300000; ++i) {
    const double x = -std::ldexp(static_cast<double>(rng() >> 11), -53) * (i % 3 == 0 ? 1 : i % 3 == 1 ? 30 : 708);
    const long double truth = std::exp(static_cast<long double>(x));
    ASSERT_LE(std::fabs(static_cast<long double>(reproducible_exp(x)) / truth - 1), 0x1p-51L) << x;
  }
}

TEST(ReproducibleMath, LogIsCloseToTheTruth) {
  EXPECT_EQ(reproducible_log(1), 0.0);
  std::mt19937_64 rng(2);
  for (int i = 0; i < 300000; ++i) {
    const double unit = std::ldexp(static_cast<double>(rng() >> 11), -53);
    const double x = i % 2 == 0 ? 1 + unit * 4 : std::ldexp(0.5 + unit, static_cast<int>(rng() % 40));
    const long double truth = std::log(static_cast<long double>(x));
    ASSERT_LE(std::fabs(reproducible_log(x) - truth), 0x1p-51L * std::max(1.0L, std::fabs(truth))) << x;
  }
}

// Values that every machine must give: any change of order or of a constant shows here.
TEST(ReproducibleMath, PinnedBits) {
  uint64_t hash = 0;
  for (int i = 0; i < 1000; ++i) {
    const double x = -0.7071 * i;
    hash = hash * 1099511628211ull ^ std::bit_cast<uint64_t>(reproducible_exp(x));
    hash = hash * 1099511628211ull ^ std::bit_cast<uint64_t>(reproducible_log(1.0 + 1.37 * i));
  }
  EXPECT_EQ(hash, 8315651724487572089ull);
}

TEST(ScoreToken, IsCloseToTheTruth) {
  std::mt19937_64 rng(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<float> logits(1 + rng() % 3000);
    for (float& x : logits) x = static_cast<float>(static_cast<double>(rng() % 2000000) / 50000 - 20);
    const auto id = static_cast<int32_t>(rng() % logits.size());
    const auto scored = score_token(logits, id, 0);
    ASSERT_TRUE(scored.ok());
    long double sum = 0;
    for (const float x : logits) sum += std::exp(static_cast<long double>(x));
    const long double truth = static_cast<long double>(logits[static_cast<size_t>(id)]) - std::log(sum);
    // Half a unit of fp32 for the result; double sums of at most 3000 terms add 3000 * 2^-52 before the logarithm.
    ASSERT_LE(std::fabs(scored->logprob - truth), std::fabs(truth) * 0x1p-24L + 3100 * 0x1p-52L);
    EXPECT_TRUE(scored->top.empty());
  }
}

TEST(ScoreToken, TopIsBestFirstWithTiesToTheLowerId) {
  const std::vector<float> logits = {1, 3, 2, 3, 0};
  const auto scored = score_token(logits, 4, 4);
  ASSERT_TRUE(scored.ok());
  EXPECT_EQ(scored->id, 4);
  std::vector<int32_t> ids;
  for (const auto& entry : scored->top) ids.push_back(entry.id);
  EXPECT_EQ(ids, (std::vector<int32_t>{1, 3, 2, 0}));
  EXPECT_EQ(scored->top[0].logprob, scored->top[1].logprob);
  EXPECT_EQ(scored->top[3].logprob, score_token(logits, 0, 0)->logprob);
  EXPECT_EQ(score_token(logits, 0, 100)->top.size(), 5U);
}

TEST(ScoreToken, MaskedIdsHaveNoProbability) {
  const float inf = std::numeric_limits<float>::infinity();
  const auto scored = score_token(std::vector<float>{-inf, 2}, 0, 2);
  ASSERT_TRUE(scored.ok());
  EXPECT_EQ(scored->logprob, -inf);
  EXPECT_EQ(scored->top[0].logprob, 0.0F);
}

TEST(ScoreToken, NumbersThatAreNoneAreErrorsUnlessNothingIsAsked) {
  const std::vector<float> bad = {0, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_FALSE(score_token(bad, 0, 0).ok());
  EXPECT_TRUE(score_token(bad, 0, -1).ok());
  EXPECT_EQ(checked_max(bad).error().message.substr(0, 26), "the model's logit of id 1 ");
}

}  // namespace
}  // namespace quadrille::engine
