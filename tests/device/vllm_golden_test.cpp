// SPDX-License-Identifier: Apache-2.0
// The device with numerics `vllm` against real bytes of vLLM on an H100: scales, quantised rows, grouped products with
// every tile, the activation step, every stage of the small layer, no differing bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "device/compare_bits.h"
#include "device/device_plan.h"
#include "layout/w4_hopper64.h"
#include "prepare/device_prepare.h"
#include "support/golden.h"
#include "support/tensors.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;

template <typename T>
std::vector<uint32_t> bits_of_all(const std::vector<T>& values) {
  std::vector<uint32_t> bits(values.size());
  std::memcpy(bits.data(), values.data(), values.size() * sizeof(uint32_t));
  return bits;
}

class VllmGoldenDevice : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    const std::string name = GetParam();
    std::string path = data_path("kernels/vllm_h100_cut.safetensors");
    if (name == "whole") {
      const auto golden = golden_path("vllm_h100.safetensors");
      if (!golden) GTEST_SKIP() << kNoGolden;
      path = *golden;
    }
    tensors.emplace(path);
    owned.emplace(must(device::OwnedStream::create()));
    stream = owned->get();
    table = must(kernels::device_table());
  }

  // A packed stack [E, parts * N, K/8] with its scales, prepared on the device.
  moe::DeviceLinear prepare_stack(const std::string& packed, const std::string& scale, int parts) {
    const auto shape = tensors->shape(packed);
    const int64_t experts = shape[0], part_n = shape[1] / parts, k = shape[2] * 8, groups = tensors->shape(scale)[2];
    const uint32_t* words = memory.copy_of(tensors->get<uint32_t>(packed), stream);
    const uint16_t* scales = memory.copy_of(tensors->get<uint16_t>(scale), stream);
    std::vector<prepare::DeviceW4Expert> sources(static_cast<size_t>(experts));
    for (int64_t e = 0; e < experts; ++e) {
      for (int part = 0; part < parts; ++part) {
        const int64_t row = (e * parts + part) * part_n;
        sources[static_cast<size_t>(e)].codes[part] = words + row * k / 8;
        sources[static_cast<size_t>(e)].scales[part] = scales + row * groups;
      }
    }
    prepare::DeviceW4Source source;
    source.numerics = Numerics::kVllm;
    source.part_n = part_n;
    source.num_parts = parts;
    source.k = k;
    source.group_size = k / groups;
    source.experts = sources;
    const auto sizes = must(prepare::device_w4_sizes(source));
    prepare::DeviceW4Destination destination;
    destination.weights = memory.take<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), 128, stream);
    destination.channel_scale = memory.take<float>(static_cast<int64_t>(sizes.channel_scale_bytes / 4), 16, stream);
    const auto done = must(device::OwnedEvent::create());
    prepare::PrepareStreams streams;
    streams.prepare = stream;
    streams.done = done.get();
    auto* status = memory.take<uint32_t>(1, 4, stream, 0);
    must(prepare::prepare_on_device(*table, source, destination, nullptr, streams, status));
    EXPECT_EQ(on_host<uint32_t>(status, 1, stream)[0], 0u);
    moe::DeviceLinear linear;
    linear.num_experts = experts;
    linear.n = parts * part_n;
    linear.k = k;
    linear.group_size = source.group_size;
    linear.numerics = Numerics::kVllm;
    linear.weights = destination.weights;
    linear.expert_stride = sizes.expert_stride;
    linear.channel_scale = destination.channel_scale;
    return linear;
  }

  // Group and channel scales of a stack of one part against the engine's.
  void compare_scales(const moe::DeviceLinear& linear, const std::string& p) {
    const layout::W4Hopper64 map{linear.n, linear.k, linear.group_size, true};
    const int64_t groups = linear.k / linear.group_size;
    const auto bytes = on_host<uint8_t>(linear.weights, linear.num_experts * linear.expert_stride, stream);
    const auto channel = on_host<float>(linear.channel_scale, linear.num_experts * map.padded_n(), stream);
    std::vector<uint8_t> group_scale;
    std::vector<float> channel_scale;
    for (int64_t e = 0; e < linear.num_experts; ++e) {
      for (int64_t n = 0; n < linear.n; ++n) {
        channel_scale.push_back(channel[static_cast<size_t>(e * map.padded_n() + n)]);
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t record = g / map.groups_per_record();
          const int64_t place = map.scale_offset(n, record, static_cast<int>(g % map.groups_per_record()));
          group_scale.push_back(bytes[static_cast<size_t>(e * linear.expert_stride + place)]);
        }
      }
    }
    EXPECT_EQ(differences(group_scale, tensors->get<uint8_t>(p + "group_scale_fp8")), "") << p;
    EXPECT_EQ(differences(channel_scale, tensors->get<float>(p + "channel_scale")), "") << p;
  }

  // Rows of codes without their padding.
  std::vector<uint8_t> codes_of(const DeviceRows& rows, int64_t count, int64_t k) {
    const auto padded = on_host<uint8_t>(rows.act, count * rows.pitch, stream);
    std::vector<uint8_t> out;
    for (int64_t r = 0; r < count; ++r) {
      out.insert(out.end(), padded.begin() + r * rows.pitch, padded.begin() + r * rows.pitch + k);
    }
    return out;
  }

  std::vector<uint16_t> multiply(kernels::DeviceW4A8Gemm gemm, int32_t config, int64_t rows, int64_t width,
                                 uint16_t** out = nullptr) {
    auto* memory_out = memory.take<uint16_t>(rows * width, 16, stream);
    gemm.out = memory_out;
    gemm.out_pitch = width;
    gemm.config = config;
    table->w4a8_gemm(gemm, stream);
    if (out != nullptr) *out = memory_out;
    return on_host<uint16_t>(memory_out, rows * width, stream);
  }

  std::optional<Tensors> tensors;
  std::optional<device::OwnedStream> owned;
  device::Stream stream;
  const kernels::DeviceTable* table = nullptr;
  PoolMemory memory;
};

TEST_P(VllmGoldenDevice, GroupedGemmsWithEveryTile) {
  int problems = 0;
  for (const std::string p : {"p0.", "p1.", "p2."}) {
    if (!tensors->has(p + "x")) continue;
    ++problems;
    const auto linear = prepare_stack(p + "weight_packed", p + "weight_scale", 1);
    compare_scales(linear, p);
    const auto counts = tensors->get<int64_t>(p + "tokens_per_expert");
    std::vector<int32_t> ids;
    for (size_t e = 0; e < counts.size(); ++e)
      ids.insert(ids.end(), static_cast<size_t>(counts[e]), static_cast<int32_t>(e));
    const auto rows = static_cast<int64_t>(ids.size());
    const uint16_t* x = memory.copy_of(tensors->get<uint16_t>(p + "x"), stream);
    const auto configs = table->w4a8_configs();
    for (size_t config = 0; config < configs.size(); ++config) {
      const DevicePlan plan =
          make_device_plan(*table, ids, 1, linear.num_experts, configs[config].tokens, &memory, stream);
      const DeviceRows act = take_rows(rows, linear.k, &memory, stream);
      table->quantize_tokens({rows, 1, linear.k, act.pitch, x, plan.slot_of_route, nullptr, act.act, act.scale},
                             stream);
      EXPECT_EQ(differences(codes_of(act, rows, linear.k), tensors->get<uint8_t>(p + "a")), "") << p;
      EXPECT_EQ(differences(on_host<float>(act.scale, rows, stream), tensors->get<float>(p + "a_scale")), "") << p;
      const auto out = multiply(gemm_over(linear, plan, act), static_cast<int32_t>(config), rows, linear.n);
      EXPECT_EQ(bit_differences(out, tensors->get<uint16_t>(p + "out"), linear.n), "") << p << configs[config].name;
    }
  }
  EXPECT_GE(problems, 2);
  EXPECT_EQ(memory.harmed(stream), "");
}

// The stages between the layer's kernels, each against the engine's.
TEST_P(VllmGoldenDevice, StagesOfTheSmallLayer) {
  constexpr int64_t kChoices = 2;
  const auto ids = tensors->get<int32_t>("layer.topk_ids");
  const auto slots = static_cast<int64_t>(ids.size());
  const auto w13 = prepare_stack("layer.w13_packed", "layer.w13_scale", 2);
  const auto w2 = prepare_stack("layer.w2_packed", "layer.w2_scale", 1);
  const int64_t hidden = w13.k, width = w2.k, tokens = slots / kChoices;
  const auto configs = table->w4a8_configs();
  for (size_t config = 0; config < configs.size(); ++config) {
    SCOPED_TRACE(configs[config].name);
    const DevicePlan plan =
        make_device_plan(*table, ids, kChoices, w13.num_experts, configs[config].tokens, &memory, stream);
    std::vector<int64_t> offsets;
    for (int32_t offset : on_host<int32_t>(plan.offsets, w13.num_experts + 1, stream)) offsets.push_back(offset);
    EXPECT_EQ(differences(offsets, tensors->get<int64_t>("layer.expert_first_token_offset")), "");
    const auto route_of_slot = on_host<int32_t>(plan.route_of_slot, slots, stream);
    EXPECT_EQ(differences(route_of_slot, tensors->get<int32_t>("layer.permuted_idx")), "");
    EXPECT_EQ(differences(on_host<int32_t>(plan.slot_of_route, slots, stream),
                          tensors->get<int32_t>("layer.inv_permuted_idx")),
              "");

    const uint16_t* x = memory.copy_of(tensors->get<uint16_t>("layer.x"), stream);
    const DeviceRows a1 = take_rows(slots, hidden, &memory, stream);
    table->quantize_tokens({tokens, kChoices, hidden, a1.pitch, x, plan.slot_of_route, nullptr, a1.act, a1.scale},
                           stream);
    // The stored rows are those of the tokens; ours lie in every slot.
    const auto stored = tensors->get<uint8_t>("layer.a1");
    const auto stored_scale = bits_of_all(tensors->get<float>("layer.a1_scale"));
    std::vector<uint8_t> expected;
    std::vector<uint32_t> expected_scale;
    for (int32_t route : route_of_slot) {
      const int64_t token = route / kChoices;
      expected.insert(expected.end(), stored.begin() + token * hidden, stored.begin() + (token + 1) * hidden);
      expected_scale.push_back(stored_scale[static_cast<size_t>(token)]);
    }
    EXPECT_EQ(bit_differences(codes_of(a1, slots, hidden), expected, hidden), "") << "a1";
    EXPECT_EQ(bit_differences(bits_of_all(on_host<float>(a1.scale, slots, stream)), expected_scale, 1), "")
        << "a1_scale";

    const auto number = static_cast<int32_t>(config);
    const auto interleaved = multiply(gemm_over(w13, plan, a1), number, slots, 2 * width);
    std::vector<uint16_t> gate_up(interleaved.size());
    for (int64_t row = 0; row < slots; ++row) {
      for (int64_t n = 0; n < 2 * width; ++n) {
        const layout::InterleavedRow place = layout::deinterleave_row(n);
        gate_up[static_cast<size_t>(row * 2 * width + place.part * width + place.row)] =
            interleaved[static_cast<size_t>(row * 2 * width + n)];
      }
    }
    EXPECT_EQ(bit_differences(gate_up, tensors->get<uint16_t>("layer.gemm1_out"), 2 * width), "") << "gemm1_out";

    kernels::DeviceW4A8Gemm activated = gemm_over(w13, plan, a1);
    activated.output = kernels::GemmOutput::kActivated;
    uint16_t* h = nullptr;
    EXPECT_EQ(
        bit_differences(multiply(activated, number, slots, width, &h), tensors->get<uint16_t>("layer.act"), width), "")
        << "act";
    const DeviceRows a2 = take_rows(slots, width, &memory, stream);
    table->quantize_listed({plan.list, width, a2.pitch, h, a2.act, a2.scale}, stream);
    EXPECT_EQ(bit_differences(codes_of(a2, slots, width), tensors->get<uint8_t>("layer.a2"), width), "") << "a2";
    EXPECT_EQ(differences(on_host<float>(a2.scale, slots, stream), tensors->get<float>("layer.a2_scale")), "");

    uint16_t* rows = nullptr;
    EXPECT_EQ(bit_differences(multiply(gemm_over(w2, plan, a2), number, slots, hidden, &rows),
                              tensors->get<uint16_t>("layer.gemm2_out"), hidden),
              "")
        << "gemm2_out";
    kernels::DeviceCombine combine;
    combine.num_tokens = tokens;
    combine.top_k = kChoices;
    combine.width = hidden;
    combine.rows = rows;
    combine.slot = plan.slot_of_route;
    combine.weight = memory.copy_of(tensors->get<float>("layer.topk_weights"), stream);
    combine.out = memory.take<uint16_t>(tokens * hidden, 16, stream);
    table->combine(combine, stream);
    EXPECT_EQ(bit_differences(on_host<uint16_t>(combine.out, tokens * hidden, stream),
                              tensors->get<uint16_t>("layer.out"), hidden),
              "")
        << "out";
  }
  EXPECT_EQ(memory.harmed(stream), "");
}

TEST_P(VllmGoldenDevice, WholeSmallLayer) {
  moe::DeviceMoeLayer layer;
  layer.rule.top_k = 2;
  layer.experts.gate_up = prepare_stack("layer.w13_packed", "layer.w13_scale", 2);
  layer.experts.down = prepare_stack("layer.w2_packed", "layer.w2_scale", 1);
  layer.rule.num_experts = layer.experts.gate_up.num_experts;
  layer.experts.hidden = layer.experts.gate_up.k;
  layer.experts.width = layer.experts.down.k;
  moe::DeviceBatch batch;
  batch.num_tokens = tensors->shape("layer.x")[0];
  // 16-byte aligned, which a take of the pool is.
  batch.x = memory.copy_of(tensors->get<uint16_t>("layer.x"), stream);
  batch.topk_ids = memory.copy_of(tensors->get<int32_t>("layer.topk_ids"), stream);
  batch.topk_weights = memory.copy_of(tensors->get<float>("layer.topk_weights"), stream);
  const int64_t count = batch.num_tokens * layer.experts.hidden;
  const size_t size = moe::workspace_bytes(layer, batch.num_tokens);
  auto* status = memory.take<uint32_t>(1, 4, stream, 0);
  for (int32_t config = -1; config < static_cast<int32_t>(table->w4a8_configs().size()); ++config) {
    batch.out = memory.take<uint16_t>(count, 16, stream);
    void* workspace = memory.take_bytes(size, 256, kPoison, stream);
    moe::DeviceStreams streams;
    streams.main = stream;
    must(moe::run_device_layer(*table, layer, batch, workspace, size, streams, status, {config, config}));
    EXPECT_EQ(bit_differences(on_host<uint16_t>(batch.out, count, stream), tensors->get<uint16_t>("layer.out"),
                              layer.experts.hidden),
              "")
        << "configuration " << config;
  }
  EXPECT_EQ(on_host<uint32_t>(status, 1, stream)[0], 0u);
  EXPECT_EQ(memory.harmed(stream), "");
}

INSTANTIATE_TEST_SUITE_P(Files, VllmGoldenDevice, ::testing::Values("cut", "whole"),
                         [](const auto& file) { return std::string(file.param); });

}  // namespace
}  // namespace quadrille::testing
