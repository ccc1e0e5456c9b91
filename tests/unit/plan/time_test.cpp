// SPDX-License-Identifier: Apache-2.0
// Predicted times against every layer of docs/benchmarks.md (H100, 2026-11-22), and how predictions must move.
#include "plan/time.h"

#include <gtest/gtest.h>

#include "plan/plan.h"
#include "unit/plan/plan_case.h"

namespace quadrille::plan {
namespace {

struct Measured {
  const char* shape;
  int groups;    // the routes of so many groups of tokens arrive, for one group's share of the experts
  double us[7];  // at 1, 4, 16, ... 4096 tokens
};
// The constants were fitted with these rows in view: this says how well the model describes them, not how it predicts.
constexpr Measured kLayers[] = {{"qwen3-30b-a3b", 1, {23.5, 48.3, 92.3, 132.3, 164.1, 289.1, 847.3}},
                                {"mixtral-8x7b", 1, {87.2, 181.3, 266.5, 294.7, 435.8, 1349.6, 4406.9}},
                                {"deepseek-v3", 8, {98.8, 198.7, 275.2, 478.0, 568.0, 1410.1, 4962.6}},
                                {"gpt-oss-120b", 1, {40.5, 98.7, 253.6, 543.5, 716.1, 1139.1, 2730.1}}};

double predicted(const Measured& layer, int64_t tokens) {
  const GpuRates gpu = *gpu_rates("h100");
  const PlanShape shape = named_plan_shape(layer.shape);
  if (layer.groups == 1) return plan_layer(shape, {1, 1, 8}, gpu, tokens)->time.total();
  ExpertWork work;
  const auto all = static_cast<double>(tokens * layer.groups);
  work.hidden = shape.config.hidden_size;
  work.columns = work.down_k = shape.config.expert_width;
  work.experts = static_cast<double>(shape.config.router.num_experts / layer.groups);
  work.routing = UniformRouting::of(shape.config.router, all);
  work.choice_rows = all * static_cast<double>(shape.config.router.top_k);  // the host sees all routes
  work.tokens = all;
  return expert_time(gpu, work).total();
}

TEST(PlanTime, IsNearTheMeasuredLayers) {
  double squares = 0;
  int count = 0;
  for (const Measured& layer : kLayers) {
    for (int i = 0; i < 7; ++i) {
      const int64_t tokens = int64_t{1} << (2 * i);
      const double error = predicted(layer, tokens) / layer.us[i] - 1;
      RecordProperty(fmt::format("{}_{}", layer.shape, tokens), fmt::format("{:+.3f}", error));
      // What docs/scaling.md claims of every point and of their mean.
      EXPECT_LE(std::abs(error), 0.30) << layer.shape << " at " << tokens << ": " << predicted(layer, tokens);
      squares += error * error;
      ++count;
    }
  }
  EXPECT_LE(std::sqrt(squares / count), 0.10);
}

// Rows of the grouped product: (experts, n, k), rows an expert, us.
TEST(PlanTime, IsNearTheMeasuredProducts) {
  struct Product {
    double experts;
    int64_t n, k, rows;
    double us;
  };
  constexpr Product kProducts[] = {{128, 1536, 2048, 1, 75.4},    {128, 1536, 2048, 64, 96.7},
                                   {128, 1536, 2048, 1024, 1105}, {128, 2048, 768, 128, 102.9},
                                   {8, 28672, 4096, 16, 173.9},   {8, 4096, 14336, 1024, 1153.2},
                                   {32, 4096, 7168, 256, 593.5},  {32, 7168, 2048, 1024, 1301.3}};
  for (const Product& p : kProducts) {
    // Every expert has exactly these rows: p = 1.
    const double us = product_us(*gpu_rates("h100"), {p.experts,
                                                      {static_cast<double>(p.rows), 1},
                                                      p.n,
                                                      p.k,
                                                      LinearForm{true, 128},
                                                      p.experts * static_cast<double>(p.rows),
                                                      2});
    EXPECT_NEAR(us, p.us, 0.15 * p.us) << p.n << " x " << p.k << " at " << p.rows;
  }
}

TEST(PlanTime, FasterMemoryHelpsDecodeAndNotPrefill) {
  const PlanShape shape = named_plan_shape("qwen3-235b-a22b");
  const auto us = [&](const char* gpu, int64_t tokens) {
    return plan_layer(shape, {1, 1, 8}, *gpu_rates(gpu), tokens)->time.total();
  };
  EXPECT_LT(us("h200", 64), 0.8 * us("h100", 64));
  EXPECT_GT(us("h200", 4096), 0.8 * us("h100", 4096));
  EXPECT_GT(us("h20", 4096), 2 * us("h100", 4096));
  double last = 0;
  for (int64_t tokens = 1; tokens <= 4096; tokens *= 4) {
    EXPECT_GT(us("h200", tokens), last);
    last = us("h200", tokens);
  }
}

TEST(PlanTime, RanksShareTheWork) {
  const PlanShape shape = named_plan_shape("deepseek-v3");
  const GpuRates gpu = *gpu_rates("h200");
  for (const int64_t tokens : {64, 1024}) {
    const double one = plan_layer(shape, {1, 1, 8}, gpu, tokens)->time.total();
    const LayerTime two = *plan_layer(shape, {2, 1, 8}, gpu, tokens);
    EXPECT_LT(two.time.total(), one);
    EXPECT_GT(two.time.total(), 0.45 * one);
    EXPECT_EQ(two.collectives.size(), 2u) << "scales and sum";
    const LayerTime split = *plan_layer(shape, {1, 2, 8}, gpu, tokens);
    EXPECT_EQ(split.collectives.size(), 3u) << "counts, rows out, rows back";
  }
}

TEST(PlanTime, AStepAddsItsPartsUp) {
  PlanRequest request;
  request.gpu = *gpu_rates("h200");
  request.gpu_memory = int64_t{1} << 60;
  const PlanShape shape = named_plan_shape("gpt-oss-120b");
  const auto plan = plan_grid(shape, {2, 2, 8}, request);
  ASSERT_TRUE(plan);
  const StepPlan& d = plan->decode;
  EXPECT_DOUBLE_EQ(d.total(),
                   d.embedding + d.attention + d.router + d.experts + d.shared + d.dense + d.head + d.collectives_us);
  EXPECT_EQ(d.shared, 0);
  double sent = 0;
  for (const PlanCollective& c : d.collectives) sent += static_cast<double>(c.calls) * c.sent;
  EXPECT_DOUBLE_EQ(d.sent, sent);
  EXPECT_TRUE(plan->fits);
  // Windows of 128 positions in every second layer: twice the context costs less than twice the attention.
  request.load.context *= 2;
  const double longer = plan_grid(shape, {2, 2, 8}, request)->decode.attention;
  EXPECT_GT(longer, d.attention);
  EXPECT_LT(longer, 2 * d.attention);
}

TEST(PlanTime, TheBestGridFitsAndIsFastest) {
  std::vector<GridPlan> plans(3);
  for (size_t i = 0; i < plans.size(); ++i) plans[i].decode.attention = 10.0 - static_cast<double>(i);
  EXPECT_FALSE(best_grid(plans));
  plans[0].fits = plans[1].fits = true;
  EXPECT_EQ(best_grid(plans), 1u);
}

}  // namespace
}  // namespace quadrille::plan
