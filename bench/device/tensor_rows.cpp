// SPDX-License-Identifier: Apache-2.0
// The MoE layer over tensor-parallel ranks, a GPU each: time at one rank and at all of them, and what its collectives
// cost. A time is the median of 30 replays of a graph of a few calls, on the slowest rank; ranks meet on the device
// before each replay. Calls take turns with their routes, tokens and shared experts, so that weights come from memory.
// One JSON line a measurement.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "bench/device/device_data.h"
#include "bench/device/rank_shapes.h"
#include "bench/device/rows.h"
#include "layout/shard_plan.h"
#include "moe/device_layer.h"

namespace quadrille::bench {
namespace {

using parallel::Communicator;
using parallel::DeviceCommunicator;

constexpr int kReplays = 30;
constexpr int kMostCalls = 8;  // of a graph

// What a rank holds of the experts of one kind.
struct ShardStack {
  int64_t experts, hidden;
  layout::KShard cut;
  layout::W4Hopper64 up_map{}, down_map{};
  device::Buffer up, down;

  ShardStack(int64_t num_experts, int64_t hidden_size, int64_t width, const BenchOptions& options, int rank, int ranks,
             device::Stream stream)
      : experts(num_experts), hidden(hidden_size) {
    const bool vllm = options.numerics == kernels::Numerics::kVllm;
    const layout::KFormat format{width, true, options.group_size};
    const auto cuts = must(layout::cut_width(width, format.k_align(), ranks, "expert width"));
    cut = layout::k_shard(format, cuts[static_cast<size_t>(rank)]);
    up_map = {2 * cut.held(), hidden, options.group_size, vllm};
    down_map = {hidden, cut.k(), options.group_size, vllm};
    up = random_weights(up_map, experts, stream);
    down = random_weights(down_map, experts, stream);
  }
  int64_t bytes_of_one() const { return up_map.num_bytes() + down_map.num_bytes(); }

  // Experts [first, first + count) of the stack.
  moe::DeviceMlp mlp(int64_t first, int64_t count, const BenchOptions& options, const float* channel) const {
    const auto linear = [&](const layout::W4Hopper64& map, const device::Buffer& weights) {
      moe::DeviceLinear out;
      out.num_experts = count;
      out.n = map.n;
      out.k = map.k;
      out.group_size = map.group_size;
      out.numerics = options.numerics;
      out.weights = weights.as<uint8_t>() + first * expert_stride(map);
      out.expert_stride = expert_stride(map);
      out.channel_scale = map.vllm ? channel : nullptr;
      return out;
    };
    moe::DeviceMlp out;
    out.hidden = hidden;
    out.width = cut.held();
    out.gate_up = linear(up_map, up);
    out.down = linear(down_map, down);
    out.down_offset = cut.k_offset();
    return out;
  }
};

// A rank at work on one shape.
class TensorBench {
 public:
  TensorBench(Communicator& host, DeviceCommunicator* gpu, device::Stream stream, const RankShape& shape,
              const BenchOptions& options)
      : host_(host),
        gpu_(gpu),
        table_(*must(kernels::device_table())),
        stream_(stream),
        shape_(shape),
        options_(options),
        side_(must(device::OwnedStream::create())),
        shared_begins_(must(device::OwnedEvent::create())),
        shared_ends_(must(device::OwnedEvent::create())),
        begin_(must(device::OwnedEvent::create(true))),
        end_(must(device::OwnedEvent::create(true))),
        routed_(shape.experts, shape.hidden, shape.width, options, host.rank(), host.size(), stream) {
    if (shape.shared_width != 0) {
      shared_.emplace(kMostCalls, shape.hidden, shape.shared_width, options, host.rank(), host.size(), stream);
    }
    const int64_t rows = std::max(routed_.up_map.padded_n(), routed_.down_map.padded_n());
    channel_ = random_floats(shape.experts * rows, 0.001f, 0.01f, stream);
  }

  void print(int64_t tokens) {
    // Every expert's weights pass once a call in large batches; small ones need several draws to leave the cache.
    const int calls = tokens <= 64 ? kMostCalls : 2;
    fill(tokens, calls);
    const int64_t routes = tokens * shape_.top_k;
    const bool split = host_.size() > 1;
    SilentRank silent(host_.rank(), host_.size());
    const double layer = time(calls, [&](int i) { run(i, tokens, split ? gpu_ : nullptr); });
    double alone = layer, collectives = 0;
    if (split) {
      alone = time(calls, [&](int i) { run(i, tokens, &silent); });
      const int64_t exchanged = routes + (shared_ ? tokens : 0);
      const int64_t summed = tokens * shape_.hidden;
      auto* data = workspace_.as<float>();
      must(device::fill(data, 0, static_cast<size_t>(std::max(exchanged, summed)) * sizeof(float), stream_));
      collectives = time(calls, [&](int) {
        must(gpu_->all_reduce_max(data, static_cast<size_t>(exchanged), stream_));
        must(gpu_->all_reduce_sum(data, static_cast<size_t>(summed), stream_));
      });
    }
    const double bytes = static_cast<double>(hit_) * static_cast<double>(routed_.bytes_of_one()) / calls +
                         (shared_ ? static_cast<double>(shared_->bytes_of_one()) : 0.0);
    const double columns =
        static_cast<double>(routes * routed_.cut.held() + (shared_ ? tokens * shared_->cut.held() : 0));
    const double flops = 6.0 * columns * static_cast<double>(shape_.hidden);
    const double roof = 1e6 * std::max(bytes / kRoofBytesPerSecond, flops / kRoofFlops);
    if (host_.rank() != 0) return;
    fmt::print(R"({{"bench":"tp","model":"{}","numerics":"{}","group":{},"ranks":{},"tokens":{},"layer_us":{:.1f},)"
               R"("without_collectives_us":{:.1f},"collectives_us":{:.1f},"share":{:.3f},"roof_us":{:.1f},)"
               R"("experts_hit":{:.1f}}})"
               "\n",
               shape_.name, options_.numerics == kernels::Numerics::kVllm ? "vllm" : "exact", options_.group_size,
               host_.size(), tokens, layer, alone, collectives, (layer - alone) / layer, roof,
               static_cast<double>(hit_) / calls);
    std::fflush(stdout);
  }

 private:
  // The same draws on every rank.
  void fill(int64_t tokens, int calls) {
    std::mt19937 random(static_cast<uint32_t>(tokens));
    ids_.clear();
    hit_ = 0;
    for (int i = 0; i < calls; ++i) {
      const auto ids = random_routes(tokens, shape_.top_k, shape_.experts, random);
      hit_ += static_cast<int64_t>(std::set<int32_t>(ids.begin(), ids.end()).size());
      ids_.push_back(upload(ids, stream_));
    }
    x_ = random_bf16(calls * tokens * shape_.hidden, stream_);
    weights_ = random_floats(tokens * shape_.top_k, 0.05f, 0.2f, stream_);
    out_ = must(device::Buffer::allocate(static_cast<size_t>(tokens * shape_.hidden) * 2, stream_));
    workspace_bytes_ = moe::workspace_bytes(layer(0, gpu_), tokens);
    const size_t exchanged = static_cast<size_t>(tokens * std::max(shape_.hidden, shape_.top_k + 1)) * sizeof(float);
    workspace_ = must(device::Buffer::allocate(std::max(workspace_bytes_, exchanged), stream_));
    status_ = upload(std::vector<uint32_t>{0}, stream_);
  }

  moe::DeviceMoeLayer layer(int call, DeviceCommunicator* tensor) const {
    moe::DeviceMoeLayer out;
    out.rule.num_experts = shape_.experts;
    out.rule.top_k = shape_.top_k;
    out.experts = routed_.mlp(0, shape_.experts, options_, channel_.as<float>());
    if (shared_) out.shared = shared_->mlp(call % kMostCalls, 1, options_, channel_.as<float>());
    out.ranks.tensor = tensor;
    return out;
  }

  void run(int call, int64_t tokens, DeviceCommunicator* tensor) const {
    moe::DeviceBatch batch;
    batch.num_tokens = tokens;
    batch.x = x_.as<uint16_t>() + call * tokens * shape_.hidden;
    batch.topk_ids = ids_[static_cast<size_t>(call)].as<int32_t>();
    batch.topk_weights = weights_.as<float>();
    batch.out = out_.as<uint16_t>();
    moe::DeviceStreams streams;
    streams.main = stream_;
    streams.side = side_.get();
    streams.shared_begins = shared_begins_.get();
    streams.shared_ends = shared_ends_.get();
    must(moe::run_device_layer(table_, layer(call, tensor), batch, workspace_.get(), workspace_bytes_, streams,
                               status_.as<uint32_t>()));
  }

  // Microseconds of a call on the slowest rank.
  double time(int calls, const std::function<void(int)>& enqueue) {
    enqueue(0);  // what connects at the first call
    const auto graph = must(device::Graph::capture(stream_, [&]() -> Status {
      for (int i = 0; i < calls; ++i) enqueue(i);
      return {};
    }));
    std::vector<float> times;
    for (int replay = -3; replay < kReplays; ++replay) {
      if (gpu_ != nullptr) must(gpu_->barrier(stream_));
      must(device::record(begin_.get(), stream_));
      must(graph.launch(stream_));
      must(device::record(end_.get(), stream_));
      must(device::synchronize(end_.get()));
      const float ms = must(device::elapsed_ms(begin_.get(), end_.get()));
      if (replay >= 0) times.push_back(ms * 1e3f / static_cast<float>(calls));
    }
    std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
    float slowest = times[kReplays / 2];
    must(host_.all_reduce_max(std::span(&slowest, 1)));
    return slowest;
  }

  Communicator& host_;
  DeviceCommunicator* gpu_;
  const kernels::DeviceTable& table_;
  device::Stream stream_;
  const RankShape& shape_;
  const BenchOptions& options_;
  device::OwnedStream side_;
  device::OwnedEvent shared_begins_, shared_ends_, begin_, end_;
  ShardStack routed_;
  std::optional<ShardStack> shared_;  // kMostCalls of them
  device::Buffer channel_, x_, weights_, out_, workspace_, status_;
  size_t workspace_bytes_ = 0;
  std::vector<device::Buffer> ids_;
  int64_t hit_ = 0;  // experts, over all calls
};

}  // namespace

void print_tensor_rows(const BenchOptions& options) {
  time_one_and_all<TensorBench>(options.tensor_ranks, options);
}

}  // namespace quadrille::bench
