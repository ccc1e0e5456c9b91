// SPDX-License-Identifier: Apache-2.0
// The sum of a GPU's memory before anything is copied, and where the weights lie in it.
#include "model/device_memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "golden_model.h"
#include "model/device_model.h"
#include "model/device_places.h"
#include "model/device_random.h"
#include "model/device_weights.h"

namespace quadrille::testing {
namespace {

using namespace model;  // NOLINT: the subject

constexpr uint64_t kGiB = uint64_t{1} << 30;

DeviceMemoryRequest small_request() {
  DeviceMemoryRequest request;
  request.weight_bytes = 10 * kGiB;
  request.position_bytes = 1000;
  request.workspace_bytes = kGiB;
  request.load_bytes = kGiB / 2;
  request.page_bytes = kGiB / 8;
  request.default_pages = 8;
  return request;
}

TEST(GpuMemory, LimitsAreBytesOrShares) {
  const auto bytes = [](const char* text) { return parse_gpu_memory(text)->bytes; };
  EXPECT_EQ(parse_gpu_memory("0.5")->fraction, 0.5);
  EXPECT_EQ(parse_gpu_memory("1")->fraction, 1);
  EXPECT_EQ(bytes("20000000000"), 20000000000u);
  EXPECT_EQ(bytes("20G"), 20 * kGiB);
  EXPECT_EQ(bytes("1.5GiB"), 3 * kGiB / 2);
  EXPECT_EQ(bytes("512MB"), uint64_t{512} << 20);
  for (const char* bad : {"", "0", "-1", "nan", "inf", "1.5", "20T", "G", "20GG", "1e300", "0.8x", "2 G"}) {
    const auto limit = parse_gpu_memory(bad);
    ASSERT_FALSE(limit.ok()) << bad;
    EXPECT_EQ(limit.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(limit.error().message.find("--gpu-memory"), std::string::npos);
  }
}

TEST(GpuMemory, TheSumHasEveryPart) {
  const DeviceMemoryRequest request = small_request();
  const uint64_t needed = 10 * kGiB + 1000 + kGiB + kGiB / 2 + kGiB + kDeviceReserveBytes;
  const auto plan = plan_device_memory(request, {}, needed, 80 * kGiB);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_EQ(plan->needed_bytes, needed);
  EXPECT_EQ(plan->num_pages, 8);
  EXPECT_EQ(plan->cache_bytes, kGiB);
  const auto less = plan_device_memory(request, {}, needed - 1, 80 * kGiB);
  ASSERT_FALSE(less.ok());
  EXPECT_EQ(less.error().code, ErrorCode::kCapacity);
  for (const uint64_t number : {needed, needed - 1, 10 * kGiB, uint64_t{1000}, kDeviceReserveBytes}) {
    EXPECT_NE(less.error().message.find(std::to_string(number)), std::string::npos) << less.error().message;
  }
  EXPECT_EQ(less.error().message.find("--gpu-memory"), std::string::npos);
}

TEST(GpuMemory, TheLimitCounts) {
  const DeviceMemoryRequest request = small_request();
  const auto by_bytes = plan_device_memory(request, {5 * kGiB, 0}, 80 * kGiB, 80 * kGiB);
  ASSERT_FALSE(by_bytes.ok());
  EXPECT_NE(by_bytes.error().message.find("raise --gpu-memory"), std::string::npos) << by_bytes.error().message;
  EXPECT_FALSE(plan_device_memory(request, {0, 0.1}, 80 * kGiB, 80 * kGiB).ok());
  EXPECT_TRUE(plan_device_memory(request, {0, 0.5}, 80 * kGiB, 80 * kGiB).ok());
  // What is free counts, too: a share of all does not help where others have the memory.
  EXPECT_FALSE(plan_device_memory(request, {0, 0.9}, 4 * kGiB, 80 * kGiB).ok());
}

TEST(GpuMemory, PagesByNumberOrBytes) {
  DeviceMemoryRequest request = small_request();
  request.cache_bytes = kGiB + kGiB / 16;
  EXPECT_EQ(plan_device_memory(request, {}, 80 * kGiB, 80 * kGiB)->num_pages, 8);
  request.cache_pages = 3;
  EXPECT_EQ(plan_device_memory(request, {}, 80 * kGiB, 80 * kGiB)->num_pages, 3);
  request.cache_pages = 0;
  request.cache_bytes = 5;
  EXPECT_EQ(plan_device_memory(request, {}, 80 * kGiB, 80 * kGiB).error().code, ErrorCode::kCapacity);
  request = small_request();
  request.cache_pages = INT64_MAX / 2;
  EXPECT_EQ(plan_device_memory(request, {}, 80 * kGiB, 80 * kGiB).error().code, ErrorCode::kCapacity);
}

struct Loaded {
  ModelConfig config;
  Inventory inventory;
  DeviceModelShape shape;
};
Loaded look_at(const std::string& name) {
  const std::string folder = *model_path(name);
  ModelConfig config = *read_model_config(folder);
  Inventory inventory = *take_inventory(folder, *formats::read_hf_config(folder), config, no_log());
  DeviceModelShape shape = *device_shape(inventory, config);
  return {std::move(config), std::move(inventory), std::move(shape)};
}

void expect_apart(const WeightPlaces& places, const ModelConfig& config) {
  std::vector<Place> all = {places.embedding, places.final_norm};
  const auto add_stack = [&](const StackPlace& stack) {
    for (const Place& place : {stack.weights, stack.channel_scale, stack.bias}) all.push_back(place);
  };
  if (!config.tie_word_embeddings) add_stack(places.lm_head);
  for (const LayerPlace& layer : places.layers) {
    for (const Place& place :
         {layer.input_norm, layer.post_attention_norm, layer.q_norm, layer.k_norm, layer.router, layer.shared_gate}) {
      all.push_back(place);
    }
    for (const StackPlace& stack : layer.qkv) add_stack(stack);
    add_stack(layer.o);
    for (const auto* mlp : {&layer.experts, &layer.shared, &layer.dense}) {
      if (!*mlp) continue;
      add_stack((*mlp)->gate_up);
      add_stack((*mlp)->down);
    }
  }
  std::erase_if(all, [](const Place& place) { return place.bytes == 0; });
  std::sort(all.begin(), all.end(), [](const Place& a, const Place& b) { return a.offset < b.offset; });
  size_t end = 0;
  for (const Place& place : all) {
    EXPECT_EQ(place.offset % 256, 0u);
    EXPECT_GE(place.offset, end);
    EXPECT_LT(place.offset, end + 256);  // no gap either
    end = place.offset + place.bytes;
  }
  EXPECT_LE(end, places.total);
  EXPECT_LT(places.total, end + 256);
}

TEST(DevicePlaces, EveryWeightHasItsOwnPlace) {
  for (const char* name : {"qwen2_moe/w4a8-g64", "olmoe_clip/w4a8-g64"}) {
    const Loaded model = look_at(name);
    for (const auto numerics : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
      const WeightPlaces places = place_weights(model.shape, model.config, numerics);
      SCOPED_TRACE(name);
      expect_apart(places, model.config);
      // q, k and v are quantised alike, so they are one matrix.
      EXPECT_EQ(places.layers[0].qkv.size(), 1u);
      EXPECT_EQ(places.layers[0].qkv[0].shape.n, model.config.q_width() + 2 * model.config.kv_width());
      EXPECT_EQ(places.layers[0].qkv[0].channel_scale.bytes > 0, numerics == kernels::Numerics::kVllm);
      EXPECT_GT(places.expert_bytes, 0u);
      EXPECT_LT(bytes_read_per_token(places, model.config), places.total - places.embedding.bytes);
      const DeviceWeightsView view = view_weights(places, model.config, nullptr, numerics);
      EXPECT_TRUE(check_device_model(view, model.config, 4096).ok());
    }
  }
}

TEST(DevicePlaces, KindsThatDifferAreNotStacked) {
  Loaded model = look_at("qwen2_moe/w4a8-g64");
  model.shape.layers[1].v.is_w4 = false;
  model.shape.layers[1].v.group_size = 0;
  const WeightPlaces places = place_weights(model.shape, model.config, kernels::Numerics::kExact);
  EXPECT_EQ(places.layers[0].qkv.size(), 1u);
  ASSERT_EQ(places.layers[1].qkv.size(), 3u);
  EXPECT_EQ(places.layers[1].qkv[2].weights.bytes,
            static_cast<size_t>(2 * model.config.kv_width() * model.config.hidden_size));
  expect_apart(places, model.config);
}

TEST(DevicePlaces, AVocabularyIsKeptInWholeEights) {
  Loaded model = look_at("olmoe_clip/w4a8-g64");
  model.config.vocab_size = 381;
  for (const bool tied : {false, true}) {
    model.config.tie_word_embeddings = tied;
    DeviceModelShape shape = model.shape;
    if (tied) shape.lm_head.reset();
    const WeightPlaces places = place_weights(shape, model.config, kernels::Numerics::kExact);
    EXPECT_EQ(places.lm_head.shape.n, 384);
    EXPECT_EQ(places.embedding.bytes, static_cast<size_t>(384 * 2 * model.config.hidden_size));
    EXPECT_EQ(places.lm_head.weights.offset == places.embedding.offset, tied);
  }
}

TEST(DevicePlaces, AMixedFeedForwardIsRefused) {
  Loaded model = look_at("qwen2_moe/w4a8-g64");
  model.inventory.layers[0].experts[0].down.decision.kind = formats::QuantizationKind::kUnquantized;
  const auto shape = device_shape(model.inventory, model.config);
  ASSERT_FALSE(shape.ok());
  EXPECT_EQ(shape.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(shape.error().message.find("down"), std::string::npos) << shape.error().message;
}

// What the plan says about a shape before a GPU is asked.
TEST(DevicePlaces, RandomShapesAreCounted) {
  ModelConfig config = look_at("qwen2_moe/w4a8-g64").config;
  RandomModel random;
  random.group_size = 64;
  const DeviceModelShape shape = random_device_shape(config, random);
  const WeightPlaces places = place_weights(shape, config, kernels::Numerics::kExact);
  expect_apart(places, config);
  EXPECT_TRUE(check_device_model(view_weights(places, config, nullptr, kernels::Numerics::kExact), config, 64).ok());
  EXPECT_GT(random_device_bytes(shape), uint64_t{64} << 20);
}

TEST(DeviceModel, RefusalsComeBeforeTheFolder) {
  LoadOptions options = options_of({"", kernels::Numerics::kExact, kernels::Rounding::kBf16});
  LoadOptions f32 = options;
  f32.rounding = kernels::Rounding::kF32;
  const kernels::DeviceTable table{};  // never called
  DeviceOptions device;
  EXPECT_EQ(DeviceModel::load("/no/such/folder", options, device).error().code, ErrorCode::kInvalidArgument);
  device.table = &table;
  const auto wide = DeviceModel::load("/no/such/folder", f32, device);
  ASSERT_FALSE(wide.ok());
  EXPECT_EQ(wide.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(wide.error().message.find("--round f32"), std::string::npos) << wide.error().message;
  if (device::available(0)) GTEST_SKIP() << "this machine has a GPU";
  const auto model = DeviceModel::load("/no/such/folder", options, device);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code, ErrorCode::kUnsupported) << model.error().message;
}

}  // namespace
}  // namespace quadrille::testing
