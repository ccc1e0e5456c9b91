// SPDX-License-Identifier: Apache-2.0
// The sampler: known random numbers, filters against their definitions said slowly, frequencies against probabilities.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "engine/philox.h"
#include "engine/reproducible_math.h"

namespace quadrille::engine {
namespace {

// The known answers that its authors publish with Random123 (kat_vectors).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(philox4x32_10({ones, ones, ones, ones}, {ones, ones}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformDrawsLieBelowOne) {
  double low = 1, high = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = uniform_draw(i % 7, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    low = std::min(low, u);
    high = std::max(high, u);
  }
  EXPECT_LT(low, 0.01);  // fails by chance once in e^100
  EXPECT_GT(high, 0.99);
}

TEST(Greedy, TakesTheLargestAndOfEqualsTheLowest) {
  Sampler sampler;
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, 5, 3, 5}, {}, 0, {}), 1);
  EXPECT_EQ(*sampler.sample(std::vector<float>{-0.0F, 0.0F}, {}, 0, {}), 0);
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(*sampler.sample(std::vector<float>{-inf, -3, -inf}, {}, 0, {}), 1);
}

TEST(Sampler, RowsThatAreNoNumbersAreErrors) {
  Sampler sampler;
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  SamplingParams warm;
  warm.temperature = 1;
  for (const auto& params : {SamplingParams{}, warm}) {
    for (const auto& row : {std::vector<float>{0, nan, 1}, {0, inf, 1}, {-inf, -inf, -inf}, {nan, nan, nan}}) {
      const auto result = sampler.sample(row, params, 0, {});
      ASSERT_FALSE(result.ok());
      EXPECT_EQ(result.error().code, ErrorCode::kInvalidData);
    }
  }
}

TEST(RepetitionPenalty, DividesPositiveAndMultipliesNegativeLogits) {
  Sampler sampler;
  SamplingParams params;
  params.repetition_penalty = 2;
  const std::vector<float> logits = {4, 2.5F, -1, -1.5F};
  EXPECT_EQ(*sampler.sample(logits, params, 0, std::vector<int32_t>{}), 0);
  EXPECT_EQ(*sampler.sample(logits, params, 0, std::vector<int32_t>{0}), 1);     // 2 < 2.5
  EXPECT_EQ(*sampler.sample(logits, params, 0, std::vector<int32_t>{0, 1}), 0);  // 2 > 1.25
  const std::vector<float> negative = {-1, -1.5F, -9};
  EXPECT_EQ(*sampler.sample(negative, params, 0, std::vector<int32_t>{0}), 1);  // -2 < -1.5
}

// The definition said slowly: every id, ranked, one filter after the other.
std::vector<int32_t> kept_slowly(const std::vector<float>& logits, const SamplingParams& params) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weight;
  for (const float x : logits) {
    const double exact = reproducible_exp((static_cast<double>(x) - max) / params.temperature);
    weight.push_back(std::floor(exact * 0x1p34) * 0x1p-34);
  }
  std::vector<int32_t> ranked;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (weight[i] > 0) ranked.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < ranked.size()) {
    ranked.resize(static_cast<size_t>(params.top_k));
  }
  if (params.top_p < 1) {
    double all = 0, running = 0;
    std::set<int32_t> by_id(ranked.begin(), ranked.end());
    for (const int32_t id : by_id) all += weight[static_cast<size_t>(id)];
    size_t count = 0;
    while (count < ranked.size()) {
      running += weight[static_cast<size_t>(ranked[count++])];
      if (running >= params.top_p * all) break;
    }
    ranked.resize(count);
  }
  std::erase_if(ranked, [&](int32_t id) { return weight[static_cast<size_t>(id)] < params.min_p; });
  std::sort(ranked.begin(), ranked.end());
  return ranked;
}

TEST(Filters, EqualTheirDefinitions) {
  std::mt19937_64 rng(1);
  Sampler sampler;
  for (int round = 0; round < 3000; ++round) {
    std::vector<float> logits(1 + rng() % 1500);
    const bool coarse = rng() % 2 == 0;  // many equal logits
    for (float& x : logits) {
      x = static_cast<float>(static_cast<double>(rng() % 100000) / 6000.0 - 8);
      if (coarse) x = std::round(x);
      if (rng() % 50 == 0) x = -std::numeric_limits<float>::infinity();
    }
    logits[rng() % logits.size()] = 1;
    SamplingParams params;
    params.temperature = std::array{0.01F, 0.5F, 1.0F, 3.0F}[rng() % 4];
    if (rng() % 2 == 0) params.top_k = static_cast<int32_t>(1 + rng() % 400);
    if (rng() % 2 == 0) params.top_p = std::array{1e-9F, 0.1F, 0.5F, 0.9F, 0.999999F}[rng() % 5];
    if (rng() % 2 == 0) params.min_p = std::array{1e-6F, 0.01F, 0.3F, 1.0F}[rng() % 4];
    const auto kept = sampler.filter(logits, params);
    ASSERT_TRUE(kept.ok());
    std::vector<int32_t> ids;
    for (const auto& candidate : *kept) ids.push_back(candidate.id);
    ASSERT_EQ(ids, kept_slowly(logits, params)) << "round " << round;
    ASSERT_FALSE(ids.empty());
  }
}

TEST(Filters, ByHand) {
  Sampler sampler;
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const float ln2 = 0.69314718F;
  const std::vector<float> logits = {3 * ln2, 2 * ln2, ln2, ln2};
  const auto ids = [&](int32_t k, float p, float m) {
    SamplingParams params;
    params.temperature = 1;
    params.top_k = k;
    params.top_p = p;
    params.min_p = m;
    std::vector<int32_t> kept;
    const std::span<const Candidate> candidates = *sampler.filter(logits, params);
    for (const auto& candidate : candidates) kept.push_back(candidate.id);
    return kept;
  };
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(ids(0, 1, 0), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(ids(3, 1, 0), (Ids{0, 1, 2}));  // of the equal ones the lower id
  EXPECT_EQ(ids(0, 0.49F, 0), (Ids{0}));
  EXPECT_EQ(ids(0, 0.51F, 0), (Ids{0, 1}));
  EXPECT_EQ(ids(0, 0.76F, 0), (Ids{0, 1, 2}));
  EXPECT_EQ(ids(2, 0.7F, 0), (Ids{0, 1}));  // of the two left the first has 2/3
  EXPECT_EQ(ids(2, 0.66F, 0), (Ids{0}));
  EXPECT_EQ(ids(0, 1, 0.4F), (Ids{0, 1}));  // 0.25 >= 0.4 * 0.5 > 0.125
  EXPECT_EQ(ids(0, 1, 1), (Ids{0}));
}

// Pearson's statistic of n draws over k ids is close to chi-square with d = k - 1 degrees of freedom. Its tail (Laurent
// and Massart 2000, lemma 1): P(X >= d + 2 sqrt(d x) + 2 x) <= e^-x; x = 20 makes a false alarm one in 5e8.
double chi_square_bound(double degrees) {
  return degrees + 2 * std::sqrt(degrees * 20) + 2 * 20;
}

void expect_frequencies(const std::vector<float>& logits, const SamplingParams& base, bool over_seeds) {
  Sampler sampler;
  std::vector<Candidate> kept;
  {
    const std::span<const Candidate> span = *sampler.filter(logits, base);
    kept.assign(span.begin(), span.end());
  }
  double all = 0;
  for (const auto& candidate : kept) all += candidate.weight;
  constexpr int64_t kDraws = 40000;
  std::map<int32_t, int64_t> counts;
  for (int64_t i = 0; i < kDraws; ++i) {
    SamplingParams params = base;
    if (over_seeds) params.seed = static_cast<uint64_t>(i);
    ++counts[*sampler.sample(logits, params, over_seeds ? 3 : static_cast<uint64_t>(i), {})];
  }
  double statistic = 0;
  int64_t found = 0;
  for (const auto& candidate : kept) {
    const double expected = kDraws * candidate.weight / all;
    ASSERT_GT(expected, 5) << "too rare for the statistic";
    const double off = static_cast<double>(counts[candidate.id]) - expected;
    statistic += off * off / expected;
    found += counts[candidate.id];
  }
  EXPECT_EQ(found, kDraws) << "an id outside the filter was drawn";
  EXPECT_LT(statistic, chi_square_bound(static_cast<double>(kept.size()) - 1));
}

TEST(Draws, FollowTheProbabilities) {
  std::vector<float> logits;
  for (int i = 0; i < 40; ++i) logits.push_back(static_cast<float>((i * 17) % 40) / 12.0F);
  SamplingParams params;
  params.temperature = 1;
  for (const bool over_seeds : {false, true}) {
    expect_frequencies(logits, params, over_seeds);
    params.temperature = 2;
    expect_frequencies(logits, params, over_seeds);
    params.temperature = 0.8F;
    params.top_k = 12;
    expect_frequencies(logits, params, over_seeds);
    params.top_p = 0.7F;
    expect_frequencies(logits, params, over_seeds);
    params.min_p = 0.5F;
    expect_frequencies(logits, params, over_seeds);
    params = {};
    params.temperature = 1;
    params.seed = 5;
  }
}

TEST(Draws, DependOnSeedAndIndexAlone) {
  std::vector<float> logits(100, 0.0F);
  SamplingParams a, b;
  a.temperature = b.temperature = 1;
  b.seed = 1;
  Sampler sampler, other;
  int64_t same = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    const int32_t id = *sampler.sample(logits, a, i, {});
    EXPECT_EQ(id, *other.sample(logits, a, i, {}));
    (void)*other.sample(logits, b, 999 - i, {});
    same += id == *sampler.sample(logits, b, i, {}) ? 1 : 0;
  }
  // Binomial(1000, 1/100) is above 50 once in 1e17 (Chernoff: e^(-10 h(5)), h(5) = 5 ln 5 - 4).
  EXPECT_LT(same, 50);
}

// Masked and vanishing ids are never drawn; the extremes of the parameters have no trouble.
TEST(Draws, Extremes) {
  Sampler sampler;
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> logits = {-inf, 3, -inf, 3, -1e30F};
  SamplingParams params;
  for (const float temperature : {1e-45F, 1e-3F, 1.0F, 1e4F, 3e38F}) {
    params.temperature = temperature;
    for (uint64_t i = 0; i < 200; ++i) {
      const int32_t id = *sampler.sample(logits, params, i, {});
      EXPECT_TRUE(id == 1 || id == 3 || (id == 4 && temperature > 1e25F)) << id;
    }
  }
  EXPECT_EQ(*sampler.sample(std::vector<float>{7}, params, 0, {}), 0);
}

}  // namespace
}  // namespace quadrille::engine
