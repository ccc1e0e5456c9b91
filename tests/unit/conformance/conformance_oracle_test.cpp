// SPDX-License-Identifier: Apache-2.0
// What the device tests compare with, looked at alone: the random data is what its comments say, a token's expected row
// does not depend on which other tokens are asked for, routes follow their patterns.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "device/hopper_layer.h"
#include "device/random_data.h"
#include "numerics/bf16.h"

namespace quadrille::testing {
namespace {

TEST(RandomData, Distributions) {
  constexpr int64_t kCount = 1 << 16;
  int negative = 0, zero = 0, tiny = 0;
  int codes[16] = {};
  double sum = 0, squares = 0, largest = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const float scale = numerics::bf16_to_f32(scale_bits(3, i));
    ASSERT_TRUE(std::isfinite(scale));
    negative += scale < 0 ? 1 : 0;
    zero += scale == 0 ? 1 : 0;
    tiny += scale > 0 && scale < 1e-15f ? 1 : 0;
    ++codes[code_value(3, i) + 8];
    const float x = numerics::bf16_to_f32(activation_bits(3, 1 + i / 4096, i % 4096, 4096, false));
    sum += x;
    squares += static_cast<double>(x) * x;
    largest = std::max(largest, std::abs(static_cast<double>(x)));
  }
  EXPECT_NEAR(negative, kCount / 16, kCount / 100);
  EXPECT_GT(zero, 0);
  EXPECT_GT(tiny, 0);
  for (int count : codes) EXPECT_NEAR(count, kCount / 16, kCount / 100);
  EXPECT_NEAR(sum / kCount, 0, 0.05);
  EXPECT_GT(squares / kCount, 0.5);
  EXPECT_GT(largest, 8);
}

TEST(Routes, FollowThePattern) {
  ThreadPool pool(2);
  for (LayerSpec spec : covering_cases()) {
    spec.tokens = std::min<int64_t>(spec.tokens, 64);
    const LayerRoutes routes = make_routes(spec, &pool);
    ASSERT_EQ(routes.ids.size(), static_cast<size_t>(spec.tokens * spec.top_k));
    std::set<int32_t> used(routes.ids.begin(), routes.ids.end());
    for (int32_t id : used) {
      ASSERT_GE(id, spec.routing == Routing::kPartlyHere && spec.input == RouteInput::kIds ? -1 : 0) << spec.name();
      ASSERT_LT(id, spec.experts) << spec.name();
    }
    if (spec.input != RouteInput::kIds || spec.tokens < 16) continue;
    if (spec.routing == Routing::kAllToOne) {
      EXPECT_EQ(used.size(), 1u);
    }
    if (spec.routing == Routing::kUniform) {
      EXPECT_GT(used.size(), std::min<size_t>(2, spec.experts - 1));
    }
    for (int32_t id : used) EXPECT_TRUE(spec.routing != Routing::kHalfEmpty || id % 2 == 1) << spec.name();
  }
}

TEST(HopperLayer, ATokenIsTheSameWithAndWithoutOthers) {
  ThreadPool pool(2);
  auto cases = sanitize_cases();
  for (const LayerSpec& spec : nonfinite_cases()) cases.push_back(spec);
  for (const LayerSpec& spec : guard_cases()) cases.push_back(spec);
  for (const LayerSpec& spec : cases) {
    if (spec.tokens == 0) continue;
    const LayerRoutes routes = make_routes(spec, &pool);
    const auto all = hopper_layer(spec, routes, keys_in_order(spec.tokens), &pool);
    const int64_t key = spec.tokens / 2;
    const auto one = hopper_layer(spec, routes, {key}, &pool);
    ASSERT_EQ(all.size(), static_cast<size_t>(spec.tokens * spec.hidden));
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + key * spec.hidden)) << spec.name();
    std::set<uint16_t> values(all.begin(), all.end());
    if (spec.tokens >= 7 && spec.hidden >= 64) {
      EXPECT_GT(values.size(), 20u) << spec.name() << ": a comparison that sees something";
    }
    EXPECT_EQ(values.count(0xffff), 0u) << "the poison is no result";
  }
}

}  // namespace
}  // namespace quadrille::testing
