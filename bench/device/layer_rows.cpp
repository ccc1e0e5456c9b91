// SPDX-License-Identifier: Apache-2.0
// The whole MoE layer: bf16 rows, top-k ids and weights in, bf16 rows out, in one graph. Routes are drawn once a token
// count; weights rotate over several layers.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "bench/device/device_data.h"
#include "bench/device/rows.h"
#include "moe/device_layer.h"

namespace quadrille::bench {
namespace {

struct PeerLayer {
  int64_t tokens;
  double us;
};
struct LayerShape {
  const char* name;
  int64_t hidden, width, experts, top_k;
  int64_t ranks;                 // expert parallel: `experts` local ones of ranks * experts, tokens of all ranks arrive
  std::vector<PeerLayer> peers;  // best other W4A8 or W4A16 layer, H100 SXM, same method
};

const std::vector<LayerShape>& shapes() {
  static const std::vector<LayerShape> list = {
      {"qwen3-30b-a3b",
       2048,
       768,
       128,
       8,
       1,
       {{1, 30}, {4, 48}, {16, 100}, {64, 138}, {256, 152}, {1024, 242}, {4096, 637}}},
      {"mixtral-8x7b", 4096, 14336, 8, 2, 1, {{1, 87}, {16, 275}, {64, 281}, {256, 396}, {1024, 886}, {4096, 2971}}},
      {"deepseek-v3/8", 7168, 2048, 32, 8, 8, {}},
      {"gpt-oss-120b-int4", 2880, 2880, 128, 4, 1, {}},
  };
  return list;
}

class LayerBench {
 public:
  LayerBench(const kernels::DeviceTable& table, device::Stream stream, const LayerShape& shape,
             const BenchOptions& options)
      : table_(table), stream_(stream), shape_(shape), options_(options) {
    const bool vllm = options.numerics == kernels::Numerics::kVllm;
    const int64_t group =
        shape.hidden % options.group_size == 0 && shape.width % options.group_size == 0 ? options.group_size : 32;
    first_ = {2 * shape.width, shape.hidden, group, vllm};
    second_ = {shape.hidden, shape.width, group, vllm};
    const double bytes = static_cast<double>(shape.experts * (expert_stride(first_) + expert_stride(second_)));
    copies_ = rotating_copies(bytes);
    for (int i = 0; i < copies_; ++i) {
      gate_up_.push_back(random_weights(first_, shape.experts, stream));
      down_.push_back(random_weights(second_, shape.experts, stream));
    }
    channel_ = random_floats(shape.experts * std::max(first_.padded_n(), second_.padded_n()), 0.001f, 0.01f, stream);
  }

  void print(int64_t tokens_a_rank, bool zipf) {
    std::mt19937 random(3);
    const int64_t tokens = tokens_a_rank * shape_.ranks;
    const int64_t global = shape_.experts * shape_.ranks;
    std::vector<int32_t> ids = zipf ? zipf_routes(tokens, shape_.top_k, global, 1.2, random)
                                    : random_routes(tokens, shape_.top_k, global, random);
    std::set<int32_t> hit;
    int64_t routes = 0;
    for (int32_t& id : ids) {
      if (id >= shape_.experts) id = -1;
      if (id >= 0) hit.insert(id), ++routes;
    }
    const double bytes =
        static_cast<double>(hit.size()) * static_cast<double>(first_.num_bytes() + second_.num_bytes()) +
        static_cast<double>(tokens * shape_.hidden * 4);
    const double flops = 6.0 * static_cast<double>(routes) * static_cast<double>(shape_.hidden * shape_.width);
    const double roof = 1e6 * std::max(bytes / kRoofBytesPerSecond, flops / kRoofFlops);
    const Timing t = time(tokens, ids, flops / bytes > 200);
    const double us = t.sustained_us > 0 ? t.sustained_us : t.burst_us;
    double peer = 0;
    for (const PeerLayer& p : shape_.peers) peer = p.tokens == tokens_a_rank && !zipf ? p.us : peer;
    fmt::print("{:<18} {:>5}{} {:>4} hit {:8.1f} {:8.1f} {:8.1f} {:6.2f} {:6.2f} {:7.0f} {:8.1f}\n", shape_.name,
               tokens_a_rank, zipf ? 'z' : ' ', hit.size(), t.burst_us, t.sustained_us, roof, roof / us,
               bytes / us * 1e-6, flops / us * 1e-6, peer);
    std::fflush(stdout);
  }

 private:
  moe::DeviceMoeLayer layer(int copy) const {
    moe::DeviceMoeLayer l;
    l.rule.num_experts = shape_.experts;
    l.rule.top_k = shape_.top_k;
    const auto linear = [&](const layout::W4Hopper64& map, const device::Buffer& weights) {
      moe::DeviceLinear out;
      out.num_experts = shape_.experts;
      out.n = map.n;
      out.k = map.k;
      out.group_size = map.group_size;
      out.numerics = options_.numerics;
      out.weights = weights.as<uint8_t>();
      out.expert_stride = expert_stride(map);
      out.channel_scale = map.vllm ? channel_.as<float>() : nullptr;
      return out;
    };
    l.experts.hidden = shape_.hidden;
    l.experts.width = shape_.width;
    l.experts.gate_up = linear(first_, gate_up_[copy]);
    l.experts.down = linear(second_, down_[copy]);
    return l;
  }

  Timing time(int64_t tokens, const std::vector<int32_t>& ids, bool compute_bound) {
    const auto x = random_bf16(tokens * shape_.hidden, stream_);
    const auto out = must(device::Buffer::allocate(static_cast<size_t>(tokens * shape_.hidden) * 2, stream_));
    const auto device_ids = upload(ids, stream_);
    const auto weights = random_floats(tokens * shape_.top_k, 0.05f, 0.2f, stream_);
    const size_t size = moe::workspace_bytes(layer(0), tokens);
    const auto workspace = must(device::Buffer::allocate(size, stream_));
    const auto status = upload(std::vector<uint32_t>{0}, stream_);
    moe::DeviceStreams streams;
    streams.main = stream_;
    moe::DeviceBatch batch;
    batch.num_tokens = tokens;
    batch.x = x.as<uint16_t>();
    batch.topk_ids = device_ids.as<int32_t>();
    batch.topk_weights = weights.as<float>();
    batch.out = out.as<uint16_t>();
    return time_calls(stream_, copies_ * 2, compute_bound && options_.sustained, [&](int i) {
      must(moe::run_device_layer(table_, layer(i % copies_), batch, workspace.get(), size, streams,
                                 status.as<uint32_t>()));
    });
  }

  const kernels::DeviceTable& table_;
  device::Stream stream_;
  const LayerShape& shape_;
  const BenchOptions& options_;
  layout::W4Hopper64 first_{}, second_{};
  int copies_ = 2;
  std::vector<device::Buffer> gate_up_, down_;
  device::Buffer channel_;
};

}  // namespace

void print_layer_rows(const kernels::DeviceTable& table, device::Stream stream, const BenchOptions& options) {
  fmt::print("{:<18} {:>6} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>7} {:>8}\n", "layer", "tokens", "experts", "burst us",
             "sust. us", "roof us", "frac", "TB/s", "TFLOP/s", "peer us");
  for (const LayerShape& shape : shapes()) {
    if (std::string(shape.name).find(options.only) == std::string::npos) continue;
    LayerBench bench(table, stream, shape, options);
    std::vector<int64_t> list = options.rows;
    if (list.empty()) list = {1, 4, 16, 64, 256, 1024, 4096};
    for (const int64_t tokens : list) bench.print(tokens, false);
    if (options.rows.empty()) bench.print(256, true);
  }
}

}  // namespace quadrille::bench
