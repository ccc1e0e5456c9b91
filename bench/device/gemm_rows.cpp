// SPDX-License-Identifier: Apache-2.0
// The grouped product alone: all experts with the same rows, then uneven histograms. Beside each time the roof and the
// best peer's time on the same card.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "bench/device/device_data.h"
#include "bench/device/rows.h"

namespace quadrille::bench {
namespace {

struct PeerTime {
  int64_t m;
  double us;
};
struct GemmShape {
  const char* name;
  int64_t experts, n, k;
  std::vector<PeerTime> peers;  // best other W4A8 kernel, H100 SXM, same method
};

const std::vector<GemmShape>& shapes() {
  static const std::vector<GemmShape> list = {
      {"qwen3_w13", 128, 1536, 2048, {{1, 76.9}, {16, 82.4}, {64, 111.3}, {256, 189.9}, {1024, 659}}},
      {"qwen3_w2", 128, 2048, 768, {{1, 42.3}, {16, 51.9}, {64, 67.1}, {256, 138.3}, {1024, 465}}},
      {"mixtral_w13", 8, 28672, 4096, {{1, 165.7}, {16, 176.7}, {64, 207.9}, {256, 360}, {1024, 1519.1}}},
      {"mixtral_w2", 8, 4096, 14336, {{1, 87.2}, {16, 85.6}, {64, 105.2}, {256, 170}, {1024, 640.6}}},
      {"dsv3_w13", 32, 4096, 7168, {{1, 164.5}, {16, 170.4}, {64, 203.2}, {256, 350.5}, {1024, 1346.1}}},
      {"dsv3_w2", 32, 7168, 2048, {{1, 90.6}, {16, 98.9}, {64, 120.4}, {256, 209.6}, {1024, 748.6}}},
      // Of one decode step: the linear layers around attention, the experts of one token.
      {"step_qkv", 1, 5120, 2048, {}},
      {"step_o", 1, 2048, 4096, {}},
      {"step_w13", 8, 1536, 2048, {}},
      {"step_w2", 8, 2048, 768, {}},
  };
  return list;
}

class GemmBench {
 public:
  GemmBench(const kernels::DeviceTable& table, device::Stream stream, const GemmShape& shape,
            const BenchOptions& options)
      : table_(table), stream_(stream), shape_(shape), options_(options) {
    map_ = {shape.n, shape.k, options.group_size, options.numerics == kernels::Numerics::kVllm};
    const double bytes = static_cast<double>(shape.experts * expert_stride(map_));
    copies_ = rotating_copies(bytes);
    weights_ = random_weights(map_, shape.experts * copies_, stream);
    channel_ = random_floats(shape.experts * map_.padded_n(), 0.001f, 0.01f, stream);
  }

  void print(const std::vector<int64_t>& rows, const std::string& label, double peer_us) {
    const int64_t total = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const int64_t hit = std::count_if(rows.begin(), rows.end(), [](int64_t r) { return r > 0; });
    const auto act = random_codes(total, shape_.k, map_.padded_k(), stream_);
    const auto scale = random_floats(total, 0.001f, 0.01f, stream_);
    const auto out = must(device::Buffer::allocate(static_cast<size_t>(total * shape_.n) * 2, stream_));
    const double bytes = static_cast<double>(hit * map_.num_bytes() + total * (shape_.k + 4 + 2 * shape_.n));
    const double flops = 2.0 * static_cast<double>(total) * static_cast<double>(shape_.n * shape_.k);
    const double roof = 1e6 * std::max(bytes / kRoofBytesPerSecond, flops / kRoofFlops);
    const auto configs = table_.w4a8_configs();
    const int32_t chosen =
        table_.choose_w4a8(shape_.n, shape_.k, shape_.experts, total, options_.numerics, options_.group_size);
    for (int32_t config = 0; config < static_cast<int32_t>(configs.size()); ++config) {
      if (config != chosen && !options_.all_tiles) continue;
      const Timing t = time(rows, config, act, scale, out, flops / bytes > 200);
      const double us = t.sustained_us > 0 ? t.sustained_us : t.burst_us;
      fmt::print("{:<12} {:<9} {:<8}{} {:8.1f} {:8.1f} {:8.1f} {:6.2f} {:6.2f} {:7.0f} {:8.1f}\n", shape_.name, label,
                 configs[config].name, config == chosen ? '*' : ' ', t.burst_us, t.sustained_us, roof, roof / us,
                 bytes / us * 1e-6, flops / us * 1e-6, peer_us);
      std::fflush(stdout);
    }
  }

 private:
  Timing time(const std::vector<int64_t>& rows, int32_t config, const device::Buffer& act, const device::Buffer& scale,
              const device::Buffer& out, bool compute_bound) {
    const auto tiles = cut_tiles(rows, table_.w4a8_configs()[config].tokens);
    const auto list = upload(tiles, stream_);
    const auto count = upload(std::vector<int32_t>{static_cast<int32_t>(tiles.size())}, stream_);
    kernels::DeviceW4A8Gemm p;
    p.numerics = options_.numerics;
    p.n = shape_.n;
    p.k = shape_.k;
    p.group_size = options_.group_size;
    p.num_experts = shape_.experts;
    p.list = {list.as<kernels::TokenTile>(), count.as<int32_t>(), static_cast<int64_t>(tiles.size()), 0};
    p.expert_stride = expert_stride(map_);
    p.channel_scale = channel_.as<float>();
    p.act = act.as<uint8_t>();
    p.act_rows = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    p.act_pitch = map_.padded_k();
    p.act_scale = scale.as<float>();
    p.out = out.get();
    p.out_pitch = shape_.n;
    p.config = config;
    p.list_is_older = true;
    return time_calls(stream_, copies_ * 2, compute_bound && options_.sustained, [&](int i) {
      p.weights = weights_.as<uint8_t>() + i % copies_ * shape_.experts * p.expert_stride;
      table_.w4a8_gemm(p, stream_);
    });
  }

  const kernels::DeviceTable& table_;
  device::Stream stream_;
  const GemmShape& shape_;
  const BenchOptions& options_;
  layout::W4Hopper64 map_{};
  int copies_ = 2;
  device::Buffer weights_, channel_;
};

void print_histograms(GemmBench& bench) {
  std::vector<int64_t> rows(128, 0);
  std::fill_n(rows.begin(), 64, 32);
  bench.print(rows, "64x32", 58);
  std::mt19937 random(5);
  rows.assign(128, 0);
  for (const int32_t id : zipf_routes(256, 8, 128, 1.2, random)) ++rows[id];
  bench.print(rows, "zipf1.2", 109);
  rows.assign(128, 0);
  std::fill_n(rows.begin(), 8, 256);
  bench.print(rows, "8x256", 22);
  rows.assign(128, 0);
  rows[3] = 2048;
  bench.print(rows, "1x2048", 20);
}

}  // namespace

void print_gemm_rows(const kernels::DeviceTable& table, device::Stream stream, const BenchOptions& options) {
  fmt::print("{:<12} {:<9} {:<9} {:>8} {:>8} {:>8} {:>6} {:>6} {:>7} {:>8}\n", "gemm", "rows", "tile", "burst us",
             "sust. us", "roof us", "frac", "TB/s", "TFLOP/s", "peer us");
  for (const GemmShape& shape : shapes()) {
    if (std::string(shape.name).find(options.only) == std::string::npos) continue;
    GemmBench bench(table, stream, shape, options);
    std::vector<int64_t> list = options.rows;
    if (list.empty()) list = {1, 4, 16, 32, 64, 128, 256, 1024};
    for (const int64_t m : list) {
      double peer = 0;
      for (const PeerTime& p : shape.peers) peer = p.m == m ? p.us : peer;
      bench.print(std::vector<int64_t>(static_cast<size_t>(shape.experts), m), fmt::format("{}", m), peer);
    }
    if (&shape == &shapes()[0] && options.rows.empty()) print_histograms(bench);
  }
}

}  // namespace quadrille::bench
