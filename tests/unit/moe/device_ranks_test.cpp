// SPDX-License-Identifier: Apache-2.0
// Which steps a rank of a split device layer enqueues, where the collectives stand among them, what a shard's shapes
// may be. What the steps compute is for tests/device.
#include <gmock/gmock.h>

#include "unit/moe/device_fixture.h"

namespace quadrille::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A layer of 256 columns, of which this rank holds 64 from 192 on, in the middle of its group of 128.
class DeviceRanksTest : public DeviceLayerTest {
 protected:
  DeviceRanksTest() : rank(1, 3) {
    layer.experts = shard(8, 10);
    layer.ranks.tensor = &rank;
  }
  static moe::DeviceMlp shard(int64_t experts, int place) {
    moe::DeviceMlp mlp = make_mlp(experts, 256, 64, place);
    mlp.down = make_linear(experts, 256, 128, place + 1);
    mlp.down.bias = far<float>(place + 2);
    mlp.down_offset = 64;
    return mlp;
  }

  RecordingRank rank;
};

TEST_F(DeviceRanksTest, TwoCollectivesWithTheirSteps) {
  ASSERT_TRUE(run()) << run().error().message;
  EXPECT_THAT(record.names(),
              ElementsAre("plan_routes", "quantize_tokens", "gemm1", "row_absmax", "all_reduce_max", "quantize_listed",
                          "gemm2", "combine_partial", "all_reduce_sum", "round_to_bf16"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  EXPECT_EQ(record.absmax[0].num_rows, 66) << "as many as the routes, whatever the routing is";
  EXPECT_EQ(record.absmax[0].rows_there, record.plans[0].offsets + 8);
  EXPECT_EQ(record.absmax[0].k, 64);
  EXPECT_EQ(record.quantized_listed[0].offset, 64);
  EXPECT_EQ(record.quantized_listed[0].k, 64);
  EXPECT_EQ(record.quantized_listed[0].act_pitch, 128);
  EXPECT_EQ(record.quantized_listed[0].absmax, record.absmax[0].absmax);
  EXPECT_EQ(record.gemms[1].k, 128);
  EXPECT_EQ(record.gemms[1].act_pitch, 128);
  EXPECT_EQ(record.gemms[1].output, kernels::GemmOutput::kRowsF32);
  EXPECT_EQ(record.gemms[1].bias, nullptr) << "rank 0 adds it";
}

TEST_F(DeviceRanksTest, RankZeroAddsTheBias) {
  RecordingRank first(0, 3);
  layer.ranks.tensor = &first;
  ASSERT_TRUE(run());
  EXPECT_EQ(record.gemms[1].bias, layer.experts.down.bias);
  EXPECT_EQ(record.gemms[1].output, kernels::GemmOutput::kRowsF32);
}

TEST_F(DeviceRanksTest, LocalScalesNeedNoExchange) {
  layer.ranks.split_scale = moe::SplitScale::kLocal;
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(), ElementsAre("plan_routes", "quantize_tokens", "gemm1", "quantize_listed", "gemm2",
                                          "combine_partial", "all_reduce_sum", "round_to_bf16"));
  EXPECT_EQ(record.quantized_listed[0].absmax, nullptr);
  expect_in_bounds();
  expect_reads_find_their_writers();
}

TEST_F(DeviceRanksTest, OneExchangeServesTheSharedExpertToo) {
  layer.shared = shard(1, 30);
  layer.shared_gate_weight = far<uint16_t>(34);
  batch.num_tokens = 32;  // 64 routes: the shared part begins at a multiple of 256 bytes, as the fixture has it
  ASSERT_TRUE(run()) << run().error().message;
  EXPECT_THAT(record.names(),
              ElementsAre("quantize_tokens", "router_logits", "gemm1", "row_absmax", "plan_routes", "quantize_tokens",
                          "gemm1", "row_absmax", "all_reduce_max", "quantize_listed", "gemm2", "quantize_listed",
                          "gemm2", "combine_partial", "all_reduce_sum", "round_to_bf16"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  EXPECT_EQ(record.absmax[0].absmax, record.absmax[1].absmax + 64) << "the shared expert's rows behind the routes";
  EXPECT_EQ(record.absmax[0].num_rows, 32);
  EXPECT_EQ(record.absmax[0].rows_there, nullptr);
  EXPECT_EQ(record.calls[8].writes[0].end - record.calls[8].writes[0].begin, (64u + 32u) * 4);
  EXPECT_EQ(record.quantized_listed[0].absmax, record.absmax[0].absmax);
  EXPECT_EQ(record.quantized_listed[1].absmax, record.absmax[1].absmax);
  EXPECT_EQ(record.combined_partial[0].shared, record.gemms[2].out);
  EXPECT_EQ(record.combined_partial[0].rows, record.gemms[3].out);
}

TEST_F(DeviceRanksTest, OneRankIsAWholeLayer) {
  RecordingRank alone(0, 1);
  layer.ranks.tensor = &alone;
  layer.experts = make_mlp(8, 256, 128, 10);
  ASSERT_TRUE(run());
  EXPECT_THAT(record.names(),
              ElementsAre("plan_routes", "quantize_tokens", "gemm1", "quantize_listed", "gemm2", "combine"));
  EXPECT_EQ(record.quantized_listed[0].absmax, nullptr);
}

TEST_F(DeviceRanksTest, ZeroTokensMeetNobody) {
  batch.num_tokens = 0;
  ASSERT_TRUE(run());
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceRanksTest, ColumnsOfAShardLieInsideOfItsMatrix) {
  layer.experts.down_offset = 72;
  EXPECT_THAT(run().error().message, HasSubstr("experts: down: 64 columns from 72 on do not fit into a row of 128"));
  layer.experts.down_offset = 4;
  EXPECT_THAT(run().error().message, HasSubstr("multiples of 8, found 64 columns from 4 on"));
  layer.experts.down_offset = 64;
  layer.ranks.tensor = nullptr;
  EXPECT_THAT(run().error().message, HasSubstr("down: expected 8 matrices [256, 64]")) << "no ranks, so no shard";
  layer.ranks.tensor = &rank;
  EXPECT_EQ(moe::can_run_masked(layer, 4).error().code, ErrorCode::kUnsupported);
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceRanksTest, RowParallelLinear) {
  moe::DeviceLinear linear = make_linear(1, 384, 256, 10);
  linear.bias = far<float>(11);
  const moe::DeviceSplitRows rows{batch.x, 5, 72, 128};
  const auto go = [&](const moe::DeviceRanks& ranks) {
    record = {};
    const size_t bytes = moe::row_parallel_workspace_bytes(linear, ranks, 5);
    workspace = span_of(far_memory(20), static_cast<int64_t>(bytes));
    return moe::run_row_parallel_linear(table, linear, rows, ranks, batch.out, far_memory(20), bytes, streams.main);
  };
  ASSERT_TRUE(go(layer.ranks)) << go(layer.ranks).error().message;
  EXPECT_THAT(record.names(), ElementsAre("row_absmax", "all_reduce_max", "quantize_listed", "gemm2", "all_reduce_sum",
                                          "round_to_bf16"));
  EXPECT_EQ(record.gemms[0].bias, nullptr);
  EXPECT_EQ(record.gemms[0].act_pitch, 256);
  EXPECT_EQ(record.quantized_listed[0].offset, 128);
  EXPECT_EQ(record.quantized_listed[0].k, 72);
  expect_in_bounds();
  expect_reads_find_their_writers();
  ASSERT_TRUE(go({}));
  EXPECT_THAT(record.names(), ElementsAre("quantize_listed", "gemm2"));
  EXPECT_EQ(record.gemms[0].output, kernels::GemmOutput::kRowsBf16);
  EXPECT_EQ(record.gemms[0].bias, linear.bias);
  EXPECT_EQ(record.gemms[0].out, batch.out);
  EXPECT_FALSE(moe::can_run_row_parallel(linear, 136, 128, 5));
}

}  // namespace
}  // namespace quadrille::testing
