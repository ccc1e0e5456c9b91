// SPDX-License-Identifier: Apache-2.0
// The MoE layer over expert-parallel ranks, a GPU and a batch each: time at one rank and at all of them, over peer
// memory and over collectives, and what the exchange of tokens and rows costs. Without it: the same kernels with all
// ranks' tokens and rows in memory of the own GPU and without barriers. A time is the median of 30 replays of a graph
// of a few calls, on the slowest rank; ranks meet on the device before each replay. One JSON line a measurement.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <set>

#include "bench/device/device_data.h"
#include "bench/device/rank_shapes.h"
#include "bench/device/rows.h"
#include "moe/device_expert_parallel.h"

namespace quadrille::bench {
namespace {

using parallel::Communicator;
using parallel::DeviceCommunicator;
using parallel::PeerMemory;

constexpr int kReplays = 30;
constexpr int kMostCalls = 8;  // of a graph

// Small batches need several draws of routes to find their weights outside of the cache.
int calls_of(int64_t tokens) {
  return tokens <= 64 ? kMostCalls : tokens <= 256 ? 2 : 1;
}

struct Stack {
  int64_t hidden, width;
  layout::W4Hopper64 up_map{}, down_map{};
  device::Buffer up, down;

  Stack(int64_t experts, int64_t hidden_size, int64_t width_of_one, const BenchOptions& options, device::Stream stream)
      : hidden(hidden_size), width(width_of_one) {
    const bool vllm = options.numerics == kernels::Numerics::kVllm;
    up_map = {2 * width, hidden, options.group_size, vllm};
    down_map = {hidden, width, options.group_size, vllm};
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
    out.width = width;
    out.gate_up = linear(up_map, up);
    out.down = linear(down_map, down);
    return out;
  }
};

// What the ranks do and send in a call, from its routes; the most of any rank.
struct Work {
  int64_t experts_hit = 0, routes = 0;
  int64_t bytes_read = 0;  // out of other ranks' memory: tokens that are served here, rows of own tokens
};
Work work_of(const moe::Placement& placement, const std::vector<std::vector<int32_t>>& ids, const RankShape& shape) {
  const int ranks = placement.num_ranks();
  const int64_t record = kernels::token_record_pitch((shape.hidden + 127) / 128 * 128, shape.top_k);
  std::vector<Work> work(static_cast<size_t>(ranks));
  std::vector<std::set<int32_t>> hit(static_cast<size_t>(ranks));
  for (int source = 0; source < ranks; ++source) {
    const auto& own = ids[static_cast<size_t>(source)];
    for (size_t token = 0; token < own.size(); token += static_cast<size_t>(shape.top_k)) {
      std::set<int> serving;
      for (size_t j = token; j < token + static_cast<size_t>(shape.top_k); ++j) {
        const int rank = placement.serving_rank(own[j], source);
        serving.insert(rank);
        hit[static_cast<size_t>(rank)].insert(own[j]);
        ++work[static_cast<size_t>(rank)].routes;
        if (rank != source) work[static_cast<size_t>(source)].bytes_read += shape.hidden * 2;
      }
      for (const int rank : serving) {
        if (rank != source) work[static_cast<size_t>(rank)].bytes_read += record;
      }
    }
  }
  Work most;
  for (size_t r = 0; r < work.size(); ++r) {
    most.experts_hit = std::max(most.experts_hit, static_cast<int64_t>(hit[r].size()));
    most.routes = std::max(most.routes, work[r].routes);
    most.bytes_read = std::max(most.bytes_read, work[r].bytes_read);
  }
  return most;
}

enum class Way { kOneRank, kPeers, kHere, kCollectives };

// A rank at work on one shape.
class ExpertBench {
 public:
  ExpertBench(Communicator& host, DeviceCommunicator* gpu, device::Stream stream, const RankShape& shape,
              const BenchOptions& options)
      : host_(host),
        gpu_(gpu),
        silent_(host.rank(), host.size(), gpu != nullptr ? gpu->peers() : nullptr),
        table_(*must(kernels::device_table())),
        peer_table_(*must(kernels::peer_table())),
        stream_(stream),
        shape_(shape),
        options_(options),
        placement_(must(moe::Placement::even(shape.experts, host.size()))),
        here_(placement_.num_slots(host.rank())),
        side_(must(device::OwnedStream::create())),
        shared_begins_(must(device::OwnedEvent::create())),
        shared_ends_(must(device::OwnedEvent::create())),
        begin_(must(device::OwnedEvent::create(true))),
        end_(must(device::OwnedEvent::create(true))),
        routed_(here_, shape.hidden, shape.width, options, stream) {
    if (shape.shared_width != 0) shared_.emplace(kMostCalls, shape.hidden, shape.shared_width, options, stream);
    const int64_t rows = std::max(routed_.up_map.padded_n(), routed_.down_map.padded_n());
    channel_ = random_floats(here_ * rows, 0.001f, 0.01f, stream);
    local_ = upload(moe::local_experts(placement_, host.rank()), stream);
    serving_ = upload(placement_.serving_ranks(host.rank()), stream);
  }

  void print(int64_t tokens) {
    calls_ = calls_of(tokens);
    rank_tokens_.assign(static_cast<size_t>(host_.size()), tokens);
    fill(tokens);
    double layer = 0, here = 0, collectives = 0;
    if (host_.size() == 1) {
      layer = here = time(Way::kOneRank);
    } else {
      collectives = time(Way::kCollectives);
      if (silent_.peers() != nullptr) {
        share_regions(tokens);
        layer = time(Way::kPeers);
        keep_what_peers_sent();
        here = time(Way::kHere);
        give_regions_back();
      }
    }
    if (host_.rank() != 0) return;
    print_line(tokens, layer, here, collectives);
  }

 private:
  void print_line(int64_t tokens, double layer, double here, double collectives) const {
    const double bytes = static_cast<double>(work_.experts_hit * routed_.bytes_of_one()) +
                         (shared_ ? static_cast<double>(shared_->bytes_of_one()) : 0.0);
    const double columns =
        static_cast<double>(work_.routes * shape_.width + (shared_ ? tokens * shape_.shared_width : 0));
    const double flops = 6.0 * columns * static_cast<double>(shape_.hidden);
    const double roof = 1e6 * std::max(bytes / kRoofBytesPerSecond, flops / kRoofFlops);
    const auto number = [](double us) { return us > 0 ? fmt::format("{:.1f}", us) : std::string("null"); };
    fmt::print(R"({{"bench":"ep","model":"{}","numerics":"{}","group":{},"ranks":{},"tokens_per_rank":{},)"
               R"("shared_expert":"{}","layer_us":{},"without_exchanges_us":{},"share":{},"over_collectives_us":{},)"
               R"("read_from_peers_bytes":{},"roof_us":{:.1f},"experts_hit":{}}})"
               "\n",
               shape_.name, options_.numerics == kernels::Numerics::kVllm ? "vllm" : "exact", options_.group_size,
               host_.size(), tokens, shared_ ? "whole on every rank, for its own tokens" : "none", number(layer),
               number(here), layer > 0 ? fmt::format("{:.3f}", (layer - here) / layer) : std::string("null"),
               number(collectives), work_.bytes_read, roof, work_.experts_hit);
    std::fflush(stdout);
  }

  std::vector<int32_t> routes(int64_t tokens, int call, int rank) const {
    std::mt19937 random(static_cast<uint32_t>((tokens * kMostCalls + call) * 64 + rank));
    return random_routes(tokens, shape_.top_k, shape_.experts, random);
  }

  void fill(int64_t tokens) {
    ids_.clear();
    for (int i = 0; i < calls_; ++i) ids_.push_back(upload(routes(tokens, i, host_.rank()), stream_));
    if (host_.rank() == 0) {
      std::vector<std::vector<int32_t>> all;
      for (int r = 0; r < host_.size(); ++r) all.push_back(routes(tokens, 0, r));
      work_ = work_of(placement_, all, shape_);
    }
    x_ = random_bf16(calls_ * tokens * shape_.hidden, stream_);
    weights_ = random_floats(tokens * shape_.top_k, 0.05f, 0.2f, stream_);
    out_ = must(device::Buffer::allocate(static_cast<size_t>(tokens * shape_.hidden) * 2, stream_));
    const bool alone = host_.size() == 1;
    workspace_bytes_ = alone ? moe::workspace_bytes(layer(0, Way::kOneRank), tokens)
                             : moe::expert_workspace_bytes(layer(0, Way::kCollectives), tokens, false);
    workspace_ = {};
    workspace_ = must(device::Buffer::allocate(workspace_bytes_, stream_));
    status_ = upload(std::vector<uint32_t>{0}, stream_);
  }

  moe::DeviceMoeLayer layer(int call, Way way) {
    moe::DeviceMoeLayer out;
    out.rule.num_experts = shape_.experts;
    out.rule.top_k = shape_.top_k;
    out.experts = routed_.mlp(0, here_, options_, channel_.as<float>());
    if (shared_) out.shared = shared_->mlp(call % kMostCalls, 1, options_, channel_.as<float>());
    if (way == Way::kPeers || way == Way::kCollectives) out.ranks.expert = gpu_;
    if (way == Way::kHere) out.ranks.expert = &silent_;
    return out;
  }

  // Collective.
  void share_regions(int64_t tokens) {
    parts_ = moe::expert_region_parts(layer(0, Way::kPeers), tokens);
    region_ = must(gpu_->peers()->share(parts_.total()));
    for (int i = 0; i < calls_; ++i) regions_here_.push_back(region_here());
  }
  void give_regions_back() {
    must(device::synchronize(stream_));
    regions_here_.clear();
    must(region_->close());
    region_.reset();
  }
  // Every rank's region, all on this GPU.
  std::unique_ptr<PeerMemory> region_here() {
    std::unique_ptr<PeerMemory> mine;
    must(parallel::run_rank_threads(host_.size(), [&](Communicator& part) -> Status {
      QD_TRY(auto memory, PeerMemory::create(part, host_.rank(), parts_.total(), stream_));
      QD_TRY_STATUS(part.barrier());
      if (part.rank() == host_.rank()) mine = std::move(memory);
      return {};
    }));
    return mine;  // never closed: it asks nothing of its communicator any more
  }
  // Each call once, and its peers' tokens and slots into the regions here. Rows are read, whatever they are.
  void keep_what_peers_sent() {
    for (int i = 0; i < calls_; ++i) {
      run(i, Way::kPeers);
      must(device::synchronize(stream_));
      must(host_.barrier());
      for (int r = 0; r < host_.size(); ++r) {
        if (r == host_.rank()) continue;
        must(device::copy_on_device(regions_here_[static_cast<size_t>(i)]->at(r), region_->at(r),
                                    parts_.records + parts_.slots, stream_));
      }
      must(device::synchronize(stream_));
      must(host_.barrier());
    }
  }

  void run(int call, Way way) {
    moe::DeviceBatch batch;
    batch.num_tokens = rank_tokens_.front();
    batch.x = x_.as<uint16_t>() + call * batch.num_tokens * shape_.hidden;
    batch.topk_ids = ids_[static_cast<size_t>(call)].as<int32_t>();
    batch.topk_weights = weights_.as<float>();
    batch.out = out_.as<uint16_t>();
    const moe::DeviceStreams streams{stream_, side_.get(), shared_begins_.get(), shared_ends_.get()};
    auto* status = status_.as<uint32_t>();
    if (way == Way::kOneRank) {
      must(moe::run_device_layer(table_, layer(call, way), batch, workspace_.get(), workspace_bytes_, streams, status));
      return;
    }
    moe::ExpertRegion region;
    if (way != Way::kCollectives) {
      region.memory = way == Way::kPeers ? region_.get() : regions_here_[static_cast<size_t>(call)].get();
      region.parts = parts_;
    }
    const moe::ExpertCall experts{peer_table_, {local_.as<int32_t>(), serving_.as<int32_t>()}, rank_tokens_, region};
    must(moe::run_expert_parallel_layer(table_, layer(call, way), batch, experts, workspace_.get(), workspace_bytes_,
                                        streams, status));
  }

  // Microseconds of a call on the slowest rank.
  double time(Way way) {
    run(0, way);  // what connects or is loaded at the first call
    must(device::synchronize(stream_));
    must(host_.barrier());
    const auto graph = must(device::Graph::capture(stream_, [&]() -> Status {
      for (int i = 0; i < calls_; ++i) run(i, way);
      return {};
    }));
    must(host_.barrier());
    std::vector<float> times;
    for (int replay = -3; replay < kReplays; ++replay) {
      if (gpu_ != nullptr) must(gpu_->barrier(stream_));
      must(device::record(begin_.get(), stream_));
      must(graph.launch(stream_));
      must(device::record(end_.get(), stream_));
      must(device::synchronize(end_.get()));
      const float ms = must(device::elapsed_ms(begin_.get(), end_.get()));
      if (replay >= 0) times.push_back(ms * 1e3f / static_cast<float>(calls_));
    }
    std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
    float slowest = times[kReplays / 2];
    must(host_.all_reduce_max(std::span(&slowest, 1)));
    return slowest;
  }

  Communicator& host_;
  DeviceCommunicator* gpu_;
  SilentRank silent_;
  const kernels::DeviceTable& table_;
  const kernels::PeerTable& peer_table_;
  device::Stream stream_;
  const RankShape& shape_;
  const BenchOptions& options_;
  moe::Placement placement_;
  int64_t here_;  // experts
  device::OwnedStream side_;
  device::OwnedEvent shared_begins_, shared_ends_, begin_, end_;
  Stack routed_;
  std::optional<Stack> shared_;  // kMostCalls of them
  device::Buffer channel_, local_, serving_, x_, weights_, out_, workspace_, status_;
  size_t workspace_bytes_ = 0;
  int calls_ = 1;
  std::vector<int64_t> rank_tokens_;
  std::vector<device::Buffer> ids_;
  Work work_;  // of the first call
  moe::ExpertRegionParts parts_;
  std::unique_ptr<PeerMemory> region_;
  std::vector<std::unique_ptr<PeerMemory>> regions_here_;  // of each call
};

}  // namespace

void print_expert_rows(const BenchOptions& options) {
  time_one_and_all<ExpertBench>(options.expert_ranks, options);
}

}  // namespace quadrille::bench
