// SPDX-License-Identifier: Apache-2.0
// Row-parallel shards prepared on the device against the CPU's preparation, byte for byte: the channel scales of `vllm`
// come from the absmax of unsharded rows. And what an absmax that cannot be one leaves in the status word.
#include <gtest/gtest.h>

#include "device/compare_bits.h"
#include "device/prepare_case.h"
#include "device/split_case.h"
#include "prepare/prepare_hopper.h"
#include "prepare/shard.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using prepare::OwnedW4;

constexpr int64_t kRows = 136, kColumns = 384;

// What one preparation on the device gives for one expert.
struct Prepared {
  std::vector<uint8_t> weights;
  std::vector<uint32_t> channel_scale;
  uint32_t status = 0;
};

Prepared prepare_shard(const OwnedW4& part, Numerics numerics, bool on_host_memory, const PrepareEngine& engine) {
  const device::Stream stream = engine.prepare.get();
  PoolMemory memory;
  prepare::DeviceW4Expert expert;
  expert.codes[0] = part.packed.data();
  expert.scales[0] = part.scales.data();
  expert.row_absmax = part.row_absmax.data();
  if (!on_host_memory) {
    expert.codes[0] = memory.copy_of(part.packed, stream);
    expert.scales[0] = memory.copy_of(part.scales, stream);
    expert.row_absmax = memory.copy_of(part.row_absmax, stream);
  }
  prepare::DeviceW4Source source;
  source.numerics = numerics;
  source.part_n = part.n;
  source.k = part.k;
  source.group_size = part.group_size;
  source.experts = std::span(&expert, 1);
  source.on_host = on_host_memory;
  const prepare::DeviceW4Sizes sizes = must(prepare::device_w4_sizes(source));
  const auto bytes = static_cast<int64_t>(sizes.weight_bytes);
  const auto channels = static_cast<int64_t>(sizes.channel_scale_bytes / 4);
  auto* weights = memory.take<uint8_t>(bytes, 128, stream);
  auto* channel_scale = memory.take<float>(channels, 4, stream);
  auto* staging = memory.take<uint8_t>(static_cast<int64_t>(sizes.staging_bytes), 256, stream);
  auto* status = memory.take<uint32_t>(1, 4, stream, 0);
  must(prepare::prepare_on_device(*must(kernels::device_table()), source, {weights, channel_scale, nullptr}, staging,
                                  engine.streams(), status));
  Prepared out;
  out.weights = on_host<uint8_t>(weights, bytes, stream);
  out.channel_scale = on_host<uint32_t>(channel_scale, channels, stream);
  out.status = on_host<uint32_t>(status, 1, stream)[0];
  EXPECT_EQ(memory.harmed(stream), "");
  return out;
}

TEST(PrepareSplit, ShardsHaveTheChannelScalesOfWholeRows) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  ThreadPool pool(4);
  bool scales_differ = false;
  for (const int64_t group : {32, 64, 128, 0}) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      const SplitMatrix whole(kRows, kColumns, group, false, 7, 0, kDown);
      const auto cuts = must(layout::cut_in_units(kColumns, 24, 5, "test width"));  // through groups and words
      for (const layout::Range& held : cuts) {
        const layout::KShard cut = layout::k_shard({kColumns, true, group}, held);
        const OwnedW4 part = must(prepare::row_parallel_shard(whole.view(), cut, prepare::ChannelScale::kWholeRow));
        const auto expected = must(prepare::prepare_hopper_w4({{part.view()}}, numerics, &pool));
        std::vector<uint32_t> channels;
        for (const float scale : expected.channel_scale) channels.push_back(numerics::bits_of(scale));
        OwnedW4 alone = part;
        alone.row_absmax.clear();
        scales_differ =
            scales_differ ||
            must(prepare::prepare_hopper_w4({{alone.view()}}, numerics, &pool)).channel_scale != expected.channel_scale;
        for (const bool from_host : {false, true}) {
          SCOPED_TRACE(fmt::format("group {}, numerics {}, columns {} to {}, from the host {}", group,
                                   static_cast<int>(numerics), held.begin, held.end, from_host));
          Prepared found = prepare_shard(part, numerics, from_host, engine);
          found.weights.resize(expected.weights.size());  // less what rounds the stride up
          EXPECT_EQ(found.status, 0u);
          EXPECT_EQ(bit_differences(found.weights, expected.weights, expected.map.record_bytes()), "");
          EXPECT_EQ(bit_differences(found.channel_scale, channels, expected.map.padded_n()), "");
        }
      }
    }
  }
  EXPECT_TRUE(scales_differ) << "no shard lacks the largest scale of a row: nothing was tested";
}

TEST(PrepareSplit, AnAbsmaxThatCannotBeOneIsTold) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  const SplitMatrix whole(kRows, kColumns, 128, false, 7, 0, kDown);
  const layout::KShard cut = layout::k_shard({kColumns, true, 128}, {128, 256});
  const OwnedW4 part = must(prepare::row_parallel_shard(whole.view(), cut, prepare::ChannelScale::kWholeRow));
  for (const uint32_t bits : {0u, 0x7f800000u, 0x7fc00000u, 0xbf800000u}) {
    OwnedW4 spoilt = part;
    spoilt.row_absmax[kRows - 1] = numerics::float_of(bits);
    EXPECT_EQ(prepare_shard(spoilt, Numerics::kVllm, false, engine).status, kernels::kStatusBadScale) << bits;
    EXPECT_EQ(prepare_shard(spoilt, Numerics::kExact, false, engine).status, 0u) << "exact does not read it";
  }
}

}  // namespace
}  // namespace quadrille::testing
