// SPDX-License-Identifier: Apache-2.0
// What a device layer refuses, with which words, and that nothing was enqueued before.
#include <gmock/gmock.h>

#include <cmath>
#include <functional>

#include "unit/moe/device_fixture.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

class DeviceChecks : public DeviceLayerTest {
 protected:
  // A fresh copy of the layer, spoilt, is refused with this code and text, before any work.
  void expect_refused(const std::function<void()>& spoil, ErrorCode code, const std::string& text) {
    const auto layer_before = layer;
    const auto batch_before = batch;
    const auto streams_before = streams;
    spoil();
    const Status status = run();
    ASSERT_FALSE(status) << text;
    EXPECT_EQ(status.error().code, code) << status.error().message;
    EXPECT_THAT(status.error().message, HasSubstr(text));
    EXPECT_TRUE(record.calls.empty()) << text;
    layer = layer_before;
    batch = batch_before;
    streams = streams_before;
  }
  static constexpr ErrorCode kInvalid = ErrorCode::kInvalidArgument;
  static constexpr ErrorCode kUnsupported = ErrorCode::kUnsupported;
};

TEST_F(DeviceChecks, TheLayerIsFine) {
  EXPECT_TRUE(run()) << run().error().message;
}

TEST_F(DeviceChecks, ShapesThatDisagree) {
  expect_refused([&] { layer.experts.gate_up.n = 512; }, kInvalid, "gate_up: expected 8 matrices [256, 256]");
  expect_refused([&] { layer.experts.down.k = 256; }, kInvalid, "down: expected 8 matrices [256, 128]");
  expect_refused([&] { layer.experts.down.num_experts = 7; }, kInvalid, "found 7 matrices");
  expect_refused([&] { layer.experts = make_mlp(7, 256, 128, 10); }, kInvalid, "expected as many, or an expert map");
  expect_refused([&] { layer.experts = make_mlp(0, 256, 128, 10); }, kInvalid, "at least one expert");
  expect_refused([&] { layer.shared = make_mlp(1, 128, 128, 30); }, kInvalid, "expected 1 expert of hidden size 256");
  expect_refused([&] { layer.shared = make_mlp(2, 256, 128, 30); }, kInvalid, "found 2 of hidden size 256");
  expect_refused([&] { layer.shared_gate_weight = far<uint16_t>(1); }, kInvalid, "no shared expert");
}

TEST_F(DeviceChecks, WhatNoKernelRuns) {
  expect_refused([&] { layer.experts.gate_up.group_size = 16; }, kUnsupported, "legal are 32, 64, 128");
  expect_refused([&] { layer.experts = make_mlp(8, 256, 100, 10); }, kUnsupported, "a multiple of 8, found 100");
  expect_refused([&] { layer.experts = make_mlp(8, 256, 64, 10); }, kUnsupported, "in features in multiples of 128");
  expect_refused([&] { layer.experts.gate_up.numerics = static_cast<kernels::Numerics>(7); }, kUnsupported,
                 "legal are exact and vllm");
  expect_refused([&] { layer.experts.activation.kind = static_cast<kernels::Activation>(9); }, kUnsupported,
                 "legal are silu");
  expect_refused([&] { layer.experts.gate_up.numerics = kernels::Numerics::kVllm; }, kInvalid, "different numerics");
  expect_refused(
      [&] {
        layer.experts.activation.kind = kernels::Activation::kClampedSwiglu;
        layer.experts.activation.limit = NAN;
      },
      kInvalid, "a limit above 0");
}

TEST_F(DeviceChecks, RouterRules) {
  expect_refused([&] { layer.rule.top_k = 9; }, kInvalid, "");
  expect_refused([&] { layer.rule.weight_on_input = true; }, kInvalid, "");
}

TEST_F(DeviceChecks, TokenCounts) {
  expect_refused([&] { batch.num_tokens = -1; }, kInvalid, "tokens of 2 choices");
  expect_refused([&] { batch.num_tokens = int64_t{1} << 30; }, kInvalid, "found 1073741824");
  EXPECT_TRUE(moe::can_run(layer, (int64_t{1} << 30) - 1));
  EXPECT_EQ(moe::workspace_bytes(layer, int64_t{1} << 30), 0u);
}

TEST_F(DeviceChecks, PointersAndAlignment) {
  expect_refused([&] { batch.x = nullptr; }, kInvalid, "x: a null pointer");
  expect_refused([&] { batch.x += 1; }, kInvalid, "x: expected an address that is a multiple of 16");
  expect_refused([&] { batch.out = nullptr; }, kInvalid, "out: a null pointer");
  expect_refused([&] { batch.topk_ids = nullptr; }, kInvalid, "top-k ids");
  expect_refused([&] { batch.topk_weights = nullptr; }, kInvalid, "top-k weights");
  expect_refused([&] { batch.router_logits = far<float>(7); }, kInvalid, "found both");
  expect_refused([&] { batch.router_weight = far<uint16_t>(7); }, kInvalid, "found two of them");
  expect_refused([&] { layer.experts.gate_up.weights = nullptr; }, kInvalid, "experts: gate_up: weights: a null");
  expect_refused([&] { layer.experts.down.weights += 64; }, kInvalid, "a multiple of 128");
  expect_refused([&] { layer.experts.down.expert_stride -= 128; }, kInvalid, "expert stride of at least");
  expect_refused([&] { layer.experts.down.expert_stride += 64; }, kInvalid, "a multiple of 128, found");
  expect_refused([&] { layer.experts.gate_up.numerics = layer.experts.down.numerics = kernels::Numerics::kVllm; },
                 kInvalid, "channel scales: a null pointer");
  expect_refused([&] { layer.experts.down.bias = reinterpret_cast<float*>(far_memory(1) + 2); }, kInvalid,
                 "bias: expected an address");
  expect_refused(
      [&] {
        layer.shared = make_mlp(1, 256, 128, 30);
        layer.shared->down.weights = nullptr;
      },
      kInvalid, "shared expert: down: weights");
}

TEST_F(DeviceChecks, StreamsAndEvents) {
  expect_refused([&] { streams.main = {}; }, kInvalid, "main stream: expected a stream of its own");
  const auto shared = [&] { layer.shared = make_mlp(1, 256, 128, 30); };
  expect_refused(
      [&] {
        shared();
        streams.side = {reinterpret_cast<void*>(1)};
      },
      kInvalid, "side stream");
  expect_refused(
      [&] {
        shared();
        streams.side = {far_memory(40)};
        streams.shared_begins = {far_memory(41)};
      },
      kInvalid, "needs two events");
}

TEST_F(DeviceChecks, WorkspaceOfTheWrongSizeOrPlace) {
  const size_t bytes = moe::workspace_bytes(layer, 33);
  const auto run_in = [&](void* memory, size_t size) {
    return moe::run_device_layer(table, layer, batch, memory, size, streams, far<uint32_t>(6));
  };
  EXPECT_EQ(run_in(far_memory(20), bytes - 1).error().code, ErrorCode::kCapacity);
  EXPECT_THAT(run_in(far_memory(20), 0).error().message, HasSubstr(std::to_string(bytes)));
  EXPECT_THAT(run_in(nullptr, bytes).error().message, HasSubstr("workspace: a null pointer"));
  EXPECT_THAT(run_in(far_memory(20) + 128, bytes).error().message, HasSubstr("a multiple of 256"));
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceChecks, ForcedConfigurationsOfTheClosedList) {
  options.gemm1_config = 4;
  EXPECT_THAT(run().error().message, HasSubstr("GEMM configuration 4: expected 0..3"));
  options = {-1, -2};
  EXPECT_FALSE(run());
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceChecks, MaskedForm) {
  EXPECT_TRUE(moe::can_run_masked(layer, 64));
  EXPECT_THAT(moe::can_run_masked(layer, -1).error().message, HasSubstr("for each of 8 experts"));
  EXPECT_FALSE(moe::can_run_masked(layer, int64_t{1} << 28));
  auto other = layer;
  other.shared = make_mlp(1, 256, 128, 30);
  EXPECT_EQ(moe::can_run_masked(other, 64).error().code, kUnsupported);
  other = layer;
  other.experts.gate_up.numerics = other.experts.down.numerics = kernels::Numerics::kVllm;
  EXPECT_THAT(moe::can_run_masked(other, 64).error().message, HasSubstr("numerics exact, found vllm"));
  other = layer;
  other.experts = make_mlp(8, 136, 128, 10);
  other.experts.gate_up.group_size = 0;
  EXPECT_THAT(moe::can_run_masked(other, 64).error().message, HasSubstr("next legal: 144"));
  const moe::DeviceMaskedBatch nothing{4, nullptr, far<float>(2), far<int32_t>(3), far<uint16_t>(4)};
  EXPECT_FALSE(moe::run_masked_layer(table, layer, nothing, far_memory(20), 1 << 29, streams, nullptr));
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceChecks, Linear) {
  moe::DeviceLinear linear = make_linear(2, 384, 256, 10);
  const auto go = [&] {
    return moe::run_device_linear(table, linear, batch.x, 5, batch.out, far_memory(20), 1 << 29, streams.main);
  };
  EXPECT_THAT(go().error().message, HasSubstr("expected one matrix, found 2"));
  linear = make_linear(1, 380, 256, 10);
  EXPECT_EQ(go().error().code, kUnsupported);
  EXPECT_EQ(moe::linear_workspace_bytes(linear, 5), 0u);
  EXPECT_TRUE(record.calls.empty());
}

}  // namespace
}  // namespace quadrille::testing
