// SPDX-License-Identifier: Apache-2.0
// What the device preparation decides without a device: sizes, and every refusal before any work.
#include "prepare/device_prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <stdexcept>
#include <vector>

namespace quadrille::prepare {
namespace {

using kernels::Numerics;
using kernels::W4Source;
using ::testing::HasSubstr;

// Aligned memory whose address stands for device memory: nothing reads it.
alignas(256) std::array<uint8_t, 1024> memory;

void never(const kernels::DevicePrepareW4&, device::Stream) {
  throw std::logic_error("launched");
}

// A call that would be legal.
struct Call {
  std::vector<DeviceW4Expert> experts;
  DeviceW4Source source;
  DeviceW4Destination destination{memory.data(), reinterpret_cast<float*>(memory.data()), nullptr};
  void* staging = nullptr;
  PrepareStreams streams;
  uint32_t* status = reinterpret_cast<uint32_t*>(memory.data());

  explicit Call(size_t num_experts = 3, bool bias = false) : experts(num_experts) {
    for (DeviceW4Expert& expert : experts) {
      for (int part = 0; part < 2; ++part) {
        expert.codes[part] = memory.data();
        expert.scales[part] = memory.data();
        if (bias) expert.bias[part] = memory.data();
      }
    }
    source.part_n = 72;
    source.num_parts = 2;
    source.k = 200;
    source.group_size = 64;
    if (bias) destination.bias = reinterpret_cast<float*>(memory.data());
    streams.prepare.handle = streams.done.handle = memory.data();
  }
  void from_host() {
    source.on_host = true;
    staging = memory.data();
    streams.copy.handle = streams.staging_ready.handle = memory.data();
    for (int slot = 0; slot < 2; ++slot) {
      streams.source_copied[slot].handle = streams.staging_free[slot].handle = memory.data();
    }
  }
  Result<DeviceW4Sizes> sizes() {
    source.experts = experts;
    return device_w4_sizes(source);
  }
  Error error() {
    source.experts = experts;
    kernels::DeviceTable table{};
    table.name = "never";
    table.prepare_w4 = never;
    const Status result = prepare_on_device(table, source, destination, staging, streams, status);
    EXPECT_FALSE(result);
    return result ? Error{} : result.error();
  }
};

TEST(DevicePrepare, SizesByHand) {
  Call call(3, true);
  auto sizes = call.sizes();
  ASSERT_TRUE(sizes) << sizes.error().message;
  // 144 rows are 3 row blocks, 200 columns 2 records of 4096 + 2 * 64 * 2 bytes.
  EXPECT_EQ(sizes->expert_stride, 3 * 2 * 4352);
  EXPECT_EQ(sizes->weight_bytes, 3u * 3 * 2 * 4352);
  EXPECT_EQ(sizes->channel_scale_bytes, 0u);
  EXPECT_EQ(sizes->bias_bytes, 3u * 192 * 4);
  EXPECT_EQ(sizes->staging_bytes, 0u);
  call.source.on_host = true;
  // Two slots of two parts: 72 * 100 code bytes, 72 * 4 scales, 72 floats, each rounded up to 256.
  EXPECT_EQ(call.sizes()->staging_bytes, 2u * 2 * (7424 + 768 + 512));
  call.source.source = W4Source::kInt8;
  EXPECT_EQ(call.sizes()->staging_bytes, 2u * 2 * (14592 + 768 + 512));
  Call vllm;
  vllm.source.numerics = Numerics::kVllm;
  vllm.source.num_parts = 1;
  vllm.source.group_size = 0;
  vllm.source.part_n = 64;
  vllm.source.k = 128;
  // One record of 4096 + 64 bytes: the next expert begins at a multiple of 128.
  EXPECT_EQ(vllm.sizes()->expert_stride, 4224);
  EXPECT_EQ(vllm.sizes()->channel_scale_bytes, 3u * 64 * 4);
  EXPECT_EQ(vllm.sizes()->bias_bytes, 0u);
}

TEST(DevicePrepare, AbsmaxOfUnshardedRowsIsForVllmAndOneMatrix) {
  const auto with_absmax = [](Numerics numerics) {
    Call call;
    call.source.numerics = numerics;
    call.source.num_parts = 1;
    for (DeviceW4Expert& expert : call.experts) expert.row_absmax = memory.data();
    return call;
  };
  Call vllm = with_absmax(Numerics::kVllm), exact = with_absmax(Numerics::kExact);
  vllm.source.on_host = exact.source.on_host = true;
  EXPECT_EQ(vllm.sizes()->staging_bytes, 2u * (7424 + 768 + 512)) << "72 floats more";
  EXPECT_EQ(exact.sizes()->staging_bytes, 2u * (7424 + 768)) << "not read";
  Call two = with_absmax(Numerics::kVllm);
  two.source.num_parts = 2;
  EXPECT_THAT(two.error().message, HasSubstr("row-parallel matrix alone, found 2 matrices"));
  Call some = with_absmax(Numerics::kVllm);
  some.experts[2].row_absmax = nullptr;
  EXPECT_THAT(some.error().message, HasSubstr("expert 2: either every expert has a row_absmax or none"));
  Call odd = with_absmax(Numerics::kVllm);
  odd.experts[1].row_absmax = memory.data() + 2;
  EXPECT_THAT(odd.error().message, HasSubstr("expert 1, matrix 0: row_absmax must lie at a multiple of 4"));
}

TEST(DevicePrepare, ExtraMemoryIsTwoExpertsWhateverTheirNumber) {
  Call few(2), many(130);
  few.source.on_host = many.source.on_host = true;
  EXPECT_EQ(few.sizes()->staging_bytes, many.sizes()->staging_bytes);
}

struct Refusal {
  const char* name;
  ErrorCode code;
  const char* text;
  std::function<void(Call&)> change;
};

TEST(DevicePrepare, ShapesAndSourcesAreRefusedByName) {
  using enum ErrorCode;
  const Refusal refusals[] = {
      {"group", kUnsupported, "group size 48", [](Call& c) { c.source.group_size = 48; }},
      {"n", kUnsupported, "[12, 200]", [](Call& c) { c.source.part_n = 12; }},
      {"no rows", kUnsupported, "[0, 200]", [](Call& c) { c.source.part_n = 0; }},
      {"k", kUnsupported, "[72, 204]", [](Call& c) { c.source.k = 204; }},
      {"huge k", kUnsupported, "16777216", [](Call& c) { c.source.k = int64_t{1} << 30; }},
      {"parts", kInvalidArgument, "3 matrices", [](Call& c) { c.source.num_parts = 3; }},
      {"dialect", kInvalidArgument, "dialect 9", [](Call& c) { c.source.source = static_cast<W4Source>(9); }},
      {"no expert", kInvalidArgument, "no expert", [](Call& c) { c.experts.clear(); }},
      {"codes", kInvalidArgument, "expert 2, matrix 1: codes", [](Call& c) { c.experts[2].codes[1] = nullptr; }},
      {"scales", kInvalidArgument, "expert 0, matrix 0: scales", [](Call& c) { c.experts[0].scales[0] = nullptr; }},
      {"odd codes", kInvalidArgument, "multiple of 4", [](Call& c) { c.experts[1].codes[0] = memory.data() + 2; }},
      {"odd scales", kInvalidArgument, "multiple of 2", [](Call& c) { c.experts[1].scales[0] = memory.data() + 1; }},
      {"half of the biases", kInvalidArgument, "expert 1, matrix 1",
       [](Call& c) { c.experts[0].bias[0] = c.experts[0].bias[1] = c.experts[1].bias[0] = memory.data(); }},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.name);
    Call call;
    refusal.change(call);
    const Error error = call.error();
    EXPECT_EQ(error.code, refusal.code);
    EXPECT_THAT(error.message, HasSubstr(refusal.text));
    auto sizes = call.sizes();
    ASSERT_FALSE(sizes);
    EXPECT_EQ(sizes.error().message, error.message);
  }
}

TEST(DevicePrepare, DestinationsAndStreamsAreRefusedByName) {
  const Refusal refusals[] = {
      {"weights", ErrorCode::kInvalidArgument, "prepared weights", [](Call& c) { c.destination.weights = nullptr; }},
      {"odd weights", ErrorCode::kInvalidArgument, "multiple of 128", [](Call& c) { c.destination.weights += 64; }},
      {"channel", ErrorCode::kInvalidArgument, "channel scales",
       [](Call& c) {
         c.source.numerics = Numerics::kVllm;
         c.destination.channel_scale = nullptr;
       }},
      {"bias", ErrorCode::kInvalidArgument, "prepared bias", [](Call& c) { c.destination.bias = nullptr; }},
      {"status", ErrorCode::kInvalidArgument, "status word", [](Call& c) { c.status = nullptr; }},
      {"stream", ErrorCode::kInvalidArgument, "stream", [](Call& c) { c.streams.prepare.handle = nullptr; }},
      {"done", ErrorCode::kInvalidArgument, "null handle", [](Call& c) { c.streams.done.handle = nullptr; }},
      {"staging", ErrorCode::kInvalidArgument, "staging",
       [](Call& c) {
         c.from_host();
         c.staging = nullptr;
       }},
      {"copy", ErrorCode::kInvalidArgument, "stream",
       [](Call& c) {
         c.from_host();
         c.streams.copy.handle = nullptr;
       }},
      {"event", ErrorCode::kInvalidArgument, "five events",
       [](Call& c) {
         c.from_host();
         c.streams.staging_free[1].handle = nullptr;
       }},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.name);
    Call call(3, true);
    refusal.change(call);
    const Error error = call.error();
    EXPECT_EQ(error.code, refusal.code);
    EXPECT_THAT(error.message, HasSubstr(refusal.text));
  }
}

TEST(DevicePrepare, HostMemoryMayLieAnywhere) {
  Call call;
  call.source.on_host = true;
  for (DeviceW4Expert& expert : call.experts) {
    expert.codes[0] = expert.scales[1] = memory.data() + 1;
  }
  EXPECT_TRUE(call.sizes());
}

}  // namespace
}  // namespace quadrille::prepare
