// SPDX-License-Identifier: Apache-2.0
// Which steps a device layer enqueues, in which order, on which stream and where their memory lies.
#include <gmock/gmock.h>

#include "unit/moe/device_fixture.h"

namespace quadrille::testing {
namespace {

using ::testing::ElementsAre;

TEST_F(DeviceLayerTest, StepsOfGivenRoutes) {
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(),
              ElementsAre("plan_routes", "quantize_tokens", "gemm1", "quantize_listed", "gemm2", "combine"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  EXPECT_EQ(record.combined[0].weight, batch.topk_weights);
  EXPECT_EQ(record.combined[0].shared, nullptr);
  EXPECT_EQ(record.gemms[0].n, 256);
  EXPECT_EQ(record.gemms[0].k, 256);
  EXPECT_EQ(record.gemms[1].n, 256);
  EXPECT_EQ(record.gemms[1].k, 128);
  EXPECT_EQ(record.gemms[0].act_rows, 66);
  EXPECT_EQ(record.plans[0].status, far<uint32_t>(6));
}

TEST_F(DeviceLayerTest, RouterRunsOnLogits) {
  batch.topk_ids = nullptr;
  batch.topk_weights = nullptr;
  batch.router_logits = far<float>(7);
  layer.correction_bias = far<float>(8);
  layer.rule.scoring = moe::Scoring::kSigmoid;
  layer.rule.routed_scaling = 2.5f;
  ASSERT_TRUE(run());
  EXPECT_EQ(record.names().front(), "route_tokens");
  expect_in_bounds();
  expect_reads_find_their_writers();
  EXPECT_EQ(record.plans[0].ids, record.routed[0].ids);
  EXPECT_EQ(record.combined[0].weight, record.routed[0].weights);
  EXPECT_EQ(record.routed[0].scoring, moe::Scoring::kSigmoid);
  EXPECT_EQ(record.routed[0].routed_scaling, 2.5f);
  EXPECT_EQ(record.routed[0].correction_bias, layer.correction_bias);
}

class RouterWeightTest : public DeviceLayerTest {
 protected:
  RouterWeightTest() {
    batch.topk_ids = nullptr;
    batch.topk_weights = nullptr;
    batch.router_weight = far<uint16_t>(40);
    batch.router_logits_out = far<float>(41);
    batch.arrivals = far<uint32_t>(42);
  }
};

TEST_F(RouterWeightTest, FewTokensAreRoutedAndPlannedAtOnce) {
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(),
              ElementsAre("route_and_plan", "quantize_tokens", "gemm1", "quantize_listed", "gemm2", "combine"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  const kernels::RouteAndPlan& p = record.routed_at_once[0];
  EXPECT_EQ(p.logits.weight, batch.router_weight);
  EXPECT_EQ(p.logits.logits, batch.router_logits_out);
  EXPECT_EQ(p.route.logits, p.logits.logits);
  EXPECT_EQ(p.plan.ids, p.route.ids);
  EXPECT_EQ(p.arrivals, batch.arrivals);
  EXPECT_EQ(record.combined[0].weight, p.route.weights);
  EXPECT_TRUE(record.gemms[0].list_is_older);
  EXPECT_TRUE(record.quantized_listed[0].list_is_older);
  EXPECT_TRUE(record.gemms[1].list_is_older);
}

TEST_F(RouterWeightTest, TheSharedExpertReadsCodesThatAreThere) {
  batch.num_tokens = 4;
  batch.act = far<uint8_t>(43);
  batch.act_scale = far<float>(44);
  layer.shared = make_mlp(1, 256, 384, 30);
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(), ElementsAre("gemm1", "quantize_listed", "gemm2", "route_and_plan", "quantize_tokens",
                                          "gemm1", "quantize_listed", "gemm2", "combine"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  EXPECT_EQ(record.gemms[0].act, batch.act);
  EXPECT_NE(record.gemms[2].act, batch.act);
  EXPECT_TRUE(record.gemms[2].list_is_older);
  EXPECT_TRUE(record.gemms[3].list_is_older);
}

TEST_F(RouterWeightTest, ManyTokensTakeTheSteps) {
  batch.num_tokens = kernels::kMostFusedTokens + 1;
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(), ElementsAre("router_logits", "route_tokens", "plan_routes", "quantize_tokens", "gemm1",
                                          "quantize_listed", "gemm2", "combine"));
  expect_in_bounds();
  expect_reads_find_their_writers();
}

TEST_F(RouterWeightTest, TheCombineIsLeftToTheCaller) {
  kernels::DeviceCombine combine;
  batch.combine = &combine;
  batch.out = nullptr;
  ASSERT_TRUE(run());
  EXPECT_EQ(record.names().back(), "gemm2");
  EXPECT_EQ(combine.rows, record.gemms[1].out);
  EXPECT_EQ(combine.slot, record.plans[0].slot_of_route);
  EXPECT_EQ(combine.weight, record.routed[0].weights);
  EXPECT_EQ(combine.num_tokens, 33);
  EXPECT_EQ(combine.width, 256);
}

TEST_F(DeviceLayerTest, RouterWeightOnTheInput) {
  layer.rule.top_k = 1;
  layer.rule.weight_on_input = true;
  ASSERT_TRUE(run());
  EXPECT_EQ(record.quantized[0].route_weight, batch.topk_weights);
  EXPECT_EQ(record.combined[0].weight, nullptr);
}

TEST_F(DeviceLayerTest, ExpertMapReachesThePlan) {
  layer.rule.num_experts = 64;
  layer.expert_map = far<int32_t>(9);
  ASSERT_TRUE(run());
  EXPECT_EQ(record.plans[0].expert_map, layer.expert_map);
  EXPECT_EQ(record.plans[0].map_size, 64);
  EXPECT_EQ(record.plans[0].num_experts, 8);
}

TEST_F(DeviceLayerTest, ZeroTokensEnqueueNothing) {
  batch = {};
  ASSERT_TRUE(run());
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceLayerTest, SharedExpertOnTheMainStream) {
  layer.shared = make_mlp(1, 256, 384, 30);
  layer.shared_gate_weight = far<uint16_t>(32);
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(),
              ElementsAre("quantize_tokens", "router_logits", "gemm1", "quantize_listed", "gemm2", "plan_routes",
                          "quantize_tokens", "gemm1", "quantize_listed", "gemm2", "combine"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  EXPECT_EQ(record.quantized[0].top_k, 1);
  EXPECT_EQ(record.quantized[0].slot_of_route, nullptr);
  EXPECT_EQ(record.gemms[0].list.tiles, nullptr);
  EXPECT_EQ(record.gemms[0].list.num_rows, 33);
  EXPECT_NE(record.combined[0].shared, nullptr);
  EXPECT_NE(record.combined[0].shared_gate, nullptr);
}

// The shared expert may run at any time between its hand-overs: none of its parts is touched by a routed step.
TEST_F(DeviceLayerTest, SharedPartsMeetNoRoutedPart) {
  layer.shared = make_mlp(1, 256, 384, 30);
  layer.shared_gate_weight = far<uint16_t>(32);
  ASSERT_TRUE(run());
  for (size_t i = 0; i < 5; ++i) {
    for (size_t j = 5; j + 1 < record.calls.size(); ++j) {
      for (const Span& write : record.calls[i].writes) {
        for (const Span& other : record.calls[j].writes) EXPECT_FALSE(write.meets(other)) << i << " " << j;
        for (const Span& other : record.calls[j].reads) EXPECT_FALSE(write.meets(other)) << i << " " << j;
      }
      for (const Span& read : record.calls[i].reads) {
        for (const Span& other : record.calls[j].writes) EXPECT_FALSE(read.meets(other)) << i << " " << j;
      }
    }
  }
}

TEST_F(DeviceLayerTest, OneListServesTilesOfEqualTokens) {
  layer.experts = make_mlp(8, 2048, 128, 10);
  record.choice = {1, 3};  // by the choice alone: 16 tokens for gate_up (n 256), 64 for down (n 2048)
  ASSERT_TRUE(run());
  ASSERT_EQ(record.plans.size(), 1u);
  EXPECT_EQ(record.plans[0].tile_tokens, 16);
  EXPECT_EQ(record.gemms[0].config, 1);
  EXPECT_EQ(record.gemms[1].config, 1);
}

TEST_F(DeviceLayerTest, AForcedTileTakesTheOtherAlong) {
  options.gemm2_config = 3;
  ASSERT_TRUE(run());
  ASSERT_EQ(record.plans.size(), 1u);
  EXPECT_EQ(record.gemms[0].config, 2) << "64 tokens as GEMM2, 64 rows as it was chosen";
  EXPECT_EQ(record.gemms[1].config, 3);
}

TEST_F(DeviceLayerTest, AForcedPairOfDifferentTokensHasTwoLists) {
  options = {0, 3};
  ASSERT_TRUE(run());
  ASSERT_EQ(record.plans.size(), 2u);
  EXPECT_EQ(record.plans[0].tile_tokens, 8);
  EXPECT_EQ(record.plans[1].tile_tokens, 64);
  EXPECT_EQ(record.gemms[0].list.tiles, record.plans[0].tiles);
  EXPECT_EQ(record.gemms[1].list.tiles, record.plans[1].tiles);
  EXPECT_NE(record.plans[0].tiles, record.plans[1].tiles);
  EXPECT_EQ(record.plans[1].max_tiles, kernels::max_route_tiles(66, 8, 64));
  expect_in_bounds();
  expect_reads_find_their_writers();
}

TEST_F(DeviceLayerTest, MemoryOfManyShapes) {
  for (const int64_t tokens : {1, 7, 64, 1000}) {
    for (const auto& [hidden, width] : {std::pair<int64_t, int64_t>(128, 256), {256, 640}, {2880, 2880}}) {
      layer.experts = make_mlp(8, hidden, width, 10);
      layer.experts.gate_up.group_size = layer.experts.down.group_size = 0;
      layer.shared = make_mlp(1, hidden, 8 * width, 30);
      layer.shared->gate_up.group_size = layer.shared->down.group_size = 0;
      batch.num_tokens = tokens;
      record = {};
      ASSERT_TRUE(run()) << run().error().message;
      expect_in_bounds();
      expect_reads_find_their_writers();
      EXPECT_LE(moe::workspace_bytes(layer, tokens), moe::workspace_bytes(layer, tokens + 1));
      EXPECT_EQ(moe::workspace_bytes(layer, tokens) % 256, 0u);
    }
  }
}

TEST_F(DeviceLayerTest, NotGatedExpertsAndBiases) {
  layer.experts.activation.kind = kernels::Activation::kRelu2;
  layer.experts.gate_up = make_linear(8, 128, 256, 10);
  layer.experts.gate_up.bias = far<float>(12);
  layer.experts.down.bias = far<float>(13);
  ASSERT_TRUE(run());
  EXPECT_EQ(record.gemms[0].out_pitch, 128);
  EXPECT_EQ(record.gemms[0].activation.kind, kernels::Activation::kRelu2);
  EXPECT_EQ(record.gemms[0].bias, layer.experts.gate_up.bias);
  EXPECT_EQ(record.gemms[1].bias, layer.experts.down.bias);
}

TEST_F(DeviceLayerTest, MaskedForm) {
  moe::DeviceMaskedBatch masked{40, far<uint8_t>(1), far<float>(2), far<int32_t>(3), far<uint16_t>(4)};
  const size_t bytes = moe::masked_workspace_bytes(layer, 40);
  workspace = span_of(far_memory(20), static_cast<int64_t>(bytes));
  ASSERT_TRUE(moe::run_masked_layer(table, layer, masked, far_memory(20), bytes, streams, far<uint32_t>(6)));
  EXPECT_THAT(record.names(), ElementsAre("plan_masked", "gemm1", "quantize_listed", "gemm2"));
  EXPECT_EQ(record.gemms[0].block_scale, masked.act_scale);
  EXPECT_EQ(record.gemms[0].block_max_m, 40);
  EXPECT_EQ(record.gemms[0].act_rows, 320);
  EXPECT_EQ(record.gemms[0].act_pitch, 256);
  EXPECT_EQ(record.gemms[1].out, masked.out);
  EXPECT_EQ(record.gemms[1].block_scale, nullptr);
  expect_in_bounds();
  expect_reads_find_their_writers();
}

TEST_F(DeviceLayerTest, MaskedFormTakesATileOfItsScales) {
  const moe::DeviceMaskedBatch masked{40, far<uint8_t>(1), far<float>(2), far<int32_t>(3), far<uint16_t>(4)};
  record.choice = {3, 3};  // not compiled for 1 x 128 scales
  const Status forced =
      moe::run_masked_layer(table, layer, masked, far_memory(20), 1 << 29, streams, far<uint32_t>(6), {2, -1});
  ASSERT_FALSE(forced);
  EXPECT_EQ(forced.error().code, ErrorCode::kUnsupported);
  EXPECT_TRUE(record.calls.empty());
  ASSERT_TRUE(moe::run_masked_layer(table, layer, masked, far_memory(20), 1 << 29, streams, far<uint32_t>(6)));
  EXPECT_EQ(record.gemms[0].config, 1) << "the largest of those that were";
  EXPECT_EQ(record.gemms[1].config, 1) << "the same tokens";
}

TEST_F(DeviceLayerTest, LinearIsOneExpert) {
  const moe::DeviceLinear linear = make_linear(1, 384, 256, 10);
  const size_t bytes = moe::linear_workspace_bytes(linear, 5);
  workspace = span_of(far_memory(20), static_cast<int64_t>(bytes));
  ASSERT_TRUE(moe::run_device_linear(table, linear, batch.x, 5, batch.out, far_memory(20), bytes, streams.main));
  EXPECT_THAT(record.names(), ElementsAre("quantize_tokens", "gemm2"));
  EXPECT_EQ(record.gemms[0].list.tiles, nullptr);
  EXPECT_EQ(record.gemms[0].list.num_rows, 5);
  EXPECT_EQ(record.gemms[0].out_pitch, 384);
  expect_in_bounds();
  expect_reads_find_their_writers();
}

}  // namespace
}  // namespace quadrille::testing
