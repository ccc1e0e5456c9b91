// SPDX-License-Identifier: Apache-2.0
// The bounds of `verify`: sums that ranks add up in another order lie within, sums with one wrong product do not.
#include "cli/verify_bounds.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "numerics/bf16.h"

namespace quadrille::cli {
namespace {

using model::Module;

constexpr int64_t kRows = 5, kWidth = 48;

// Rows of a product in fp32: of one rank a chain over k, of several the ranks' chains added in rank order.
struct Products {
  std::vector<float> one, many, faulty;  // [kRows, kWidth], not rounded

  Products(int64_t k, int ranks, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kRows * kWidth; ++i) {
      std::vector<float> terms(static_cast<size_t>(k));
      for (float& term : terms) term = normal(random) * normal(random);
      one.push_back(chain(terms, 0, k));
      many.push_back(sum(terms, k, ranks));
      // One 4-bit code with its sign turned, of a product of ordinary size.
      terms[random() % terms.size()] += 4.0f;
      faulty.push_back(sum(terms, k, ranks));
    }
  }

 private:
  static float chain(const std::vector<float>& terms, int64_t begin, int64_t end) {
    float acc = 0;
    for (int64_t i = begin; i < end; ++i) acc += terms[static_cast<size_t>(i)];
    return acc;
  }
  static float sum(const std::vector<float>& terms, int64_t k, int ranks) {
    float total = 0;
    for (int r = 0; r < ranks; ++r) total += chain(terms, k * r / ranks, k * (r + 1) / ranks);
    return total;
  }
};

std::vector<float> rounded(std::vector<float> x) {
  for (float& y : x) y = numerics::round_to_bf16(y);
  return x;
}

SumBounds bounds_of(const SumRules& rules, Module module, int64_t k, const std::vector<float>& rows) {
  SumBounds bounds(rules);
  bounds.see(module, {"act", moe::StageType::kF32, {kRows, k}, nullptr});
  bounds.see(module, {"gemm2_out", moe::StageType::kF32, {kRows, kWidth}, rows.data()});
  return bounds;
}

int64_t count_beyond(const std::vector<float>& expected, const std::vector<float>& found,
                     const std::vector<float>& bound) {
  EXPECT_EQ(bound.size(), expected.size());
  int64_t beyond = 0;
  for (size_t i = 0; i < bound.size(); ++i) beyond += std::abs(found[i] - expected[i]) <= bound[i] ? 0 : 1;
  return beyond;
}

TEST(VerifyBounds, PartialRowsOfRanksLieWithinAndAWrongProductDoesNot) {
  for (const bool to_bf16 : {true, false}) {
    for (const int64_t k : {64, 128, 768, 2048}) {
      for (const int ranks : {2, 3, 8}) {
        SCOPED_TRACE(::testing::Message() << "k " << k << ", " << ranks << " ranks, bf16 " << to_bf16);
        const Products products(k, ranks, static_cast<unsigned>(k + ranks));
        const SumRules rules{.ranks = ranks, .rounds_to_bf16 = to_bf16};
        const std::vector<float> one = to_bf16 ? rounded(products.one) : products.one;
        const auto bound = bounds_of(rules, Module::kMlp, k, one).partial_rows(Module::kMlp);
        EXPECT_NE(products.many, one);
        EXPECT_EQ(count_beyond(one, products.many, bound), 0);
        EXPECT_EQ(count_beyond(one, products.faulty, bound), kRows * kWidth);
      }
    }
  }
}

TEST(VerifyBounds, OutputsOfRanksLieWithinAndAWrongProductDoesNot) {
  for (const Module module : {Module::kAttention, Module::kFeedForward}) {
    for (const int64_t k : {64, 256, 1024}) {
      const Products products(k, 2, static_cast<unsigned>(k));
      const std::vector<float> one = rounded(products.one), many = rounded(products.many);
      // A dense feed-forward adds the rows of its second product alone.
      const Module part = module == Module::kAttention ? module : Module::kMlp;
      const SumBounds bounds = bounds_of({.ranks = 2}, part, k, one);
      const auto bound = bounds.update(module, one.data(), kRows, kWidth);
      EXPECT_EQ(count_beyond(one, many, bound), 0) << "k " << k;
      EXPECT_EQ(count_beyond(one, rounded(products.faulty), bound), kRows * kWidth) << "k " << k;
    }
  }
}

// Each route of a token counts with its weight; a route that is not here does not.
TEST(VerifyBounds, RoutesCountWithTheirWeights) {
  const std::vector<float> rows(kRows * kWidth, 1.0f);
  const auto bound_of = [&](float first, float second, int32_t second_slot) {
    SumBounds bounds = bounds_of({.ranks = 2}, Module::kExperts, 64, rows);
    const int32_t slots[] = {0, second_slot};
    bounds.see(Module::kExperts, {"inv_permuted_idx", moe::StageType::kI32, {1, 2}, slots});
    const float weights[] = {first, second};
    bounds.see_routes(weights, 1, 2);
    const std::vector<float> y(kWidth, 0.0f);
    return bounds.update(Module::kFeedForward, y.data(), 1, kWidth)[0];
  };
  const float one = bound_of(1.0f, 0.0f, 1);
  EXPECT_GT(one, 0x1p-9f);
  EXPECT_FLOAT_EQ(bound_of(0.5f, 0.5f, 1), one);
  EXPECT_FLOAT_EQ(bound_of(0.25f, 0.25f, 1), one / 2);
  EXPECT_FLOAT_EQ(bound_of(0.25f, 0.75f, -1), one / 4);
}

TEST(VerifyBounds, OneTensorParallelRankHasNone) {
  const Products products(128, 2, 1);
  const SumBounds bounds = bounds_of({.ranks = 1}, Module::kMlp, 128, products.one);
  const std::vector<float> none(kRows * kWidth, 0.0f);
  EXPECT_EQ(bounds.partial_rows(Module::kMlp), none);
  EXPECT_EQ(bounds.update(Module::kFeedForward, products.one.data(), kRows, kWidth), none);
}

}  // namespace
}  // namespace quadrille::cli
