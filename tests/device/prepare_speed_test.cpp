// SPDX-License-Identifier: Apache-2.0
// How fast weights are prepared on the device: both matrices of a layer of Qwen3-30B-A3B, bytes read and written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "device/fill.h"
#include "device/prepare_case.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::W4Source;
using prepare::DeviceW4Expert;
using prepare::DeviceW4Sizes;

device::Buffer buffer(int64_t bytes, device::Stream stream) {
  device::Buffer memory = must(device::Buffer::allocate(static_cast<size_t>(bytes), stream));
  must(device::fill(memory.get(), 0, static_cast<size_t>(bytes), stream));
  return memory;
}

// A stack on the device whose preparation is timed.
struct TimedStack {
  PrepareStack shape;
  device::Buffer codes, scales, weights, channel_scale, status;
  std::vector<DeviceW4Expert> experts;
  double bytes = 0;  // read and written by one preparation

  TimedStack(const PrepareStack& s, W4Source dialect, device::Stream stream) : shape(s) {
    const int64_t parts = s.matrices();
    const int64_t code_bytes = s.code_bytes(dialect);
    codes = buffer(parts * code_bytes, stream);
    scales = buffer(parts * s.part_n * s.groups() * 2, stream);
    fill_codes(codes.get(), parts * s.part_n * s.k, dialect, 1, stream);
    fill_scales(scales.as<uint16_t>(), parts * s.part_n * s.groups(), 2, stream);
    experts.resize(static_cast<size_t>(s.experts));
    for (int64_t i = 0; i < parts; ++i) {
      DeviceW4Expert& expert = experts[static_cast<size_t>(i / s.num_parts)];
      expert.codes[i % s.num_parts] = codes.as<uint8_t>() + i * code_bytes;
      expert.scales[i % s.num_parts] = scales.as<uint16_t>() + i * s.part_n * s.groups();
    }
    const DeviceW4Sizes sizes = must(prepare::device_w4_sizes(prepare_source(s, dialect, experts, false)));
    weights = buffer(static_cast<int64_t>(sizes.weight_bytes), stream);
    channel_scale = buffer(static_cast<int64_t>(sizes.channel_scale_bytes), stream);
    status = buffer(4, stream);
    bytes = static_cast<double>(parts * (code_bytes + s.part_n * s.groups() * 2)) +
            static_cast<double>(s.experts * s.map().num_bytes()) + static_cast<double>(sizes.channel_scale_bytes);
  }
  void prepare(const kernels::DeviceTable& table, W4Source dialect, const prepare::PrepareStreams& streams) const {
    must(prepare::prepare_on_device(table, prepare_source(shape, dialect, experts, false),
                                    {weights.as<uint8_t>(), channel_scale.as<float>(), nullptr}, nullptr, streams,
                                    status.as<uint32_t>()));
  }
};

// TB/s of read and written bytes over both matrices of the layer: median of ten runs.
double tb_per_s(Numerics numerics, W4Source dialect) {
  const kernels::DeviceTable& table = *must(kernels::device_table());
  const PrepareEngine engine;
  const device::Stream stream = engine.prepare.get();
  const TimedStack gate_up({128, 768, 2048, 128, 2, numerics}, dialect, stream);
  const TimedStack down({128, 2048, 768, 128, 1, numerics}, dialect, stream);
  const auto begin = must(device::OwnedEvent::create(true)), end = must(device::OwnedEvent::create(true));
  std::vector<float> times;
  for (int run = 0; run < 12; ++run) {
    must(device::record(begin.get(), stream));
    gate_up.prepare(table, dialect, engine.streams());
    down.prepare(table, dialect, engine.streams());
    must(device::record(end.get(), stream));
    must(device::synchronize(end.get()));
    if (run >= 2) times.push_back(must(device::elapsed_ms(begin.get(), end.get())));
  }
  std::sort(times.begin(), times.end());
  const double bytes = gate_up.bytes + down.bytes;
  const double median = static_cast<double>(times[5]);
  std::printf("prepare E 128 H 2048 I 768 group 128, %s, dialect %d: %.1f MB in %.3f ms (%.3f to %.3f), %.2f TB/s\n",
              numerics == Numerics::kVllm ? "vllm" : "exact", static_cast<int>(dialect), bytes * 1e-6, median,
              static_cast<double>(times.front()), static_cast<double>(times.back()), bytes / median * 1e-9);
  return bytes / median * 1e-9;
}

TEST(PrepareSpeed, Qwen3Layer) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    for (const W4Source dialect : {W4Source::kUint4b8, W4Source::kInt8}) {
      EXPECT_GE(tb_per_s(numerics, dialect), 1.0);
    }
  }
}

}  // namespace
}  // namespace quadrille::testing
