// SPDX-License-Identifier: Apache-2.0
// The layer of expert-parallel ranks beside the layer of one GPU, bit for bit: tokens and placements of every
// unevenness, over peer memory and over collectives, captured and replayed. Each rank has a GPU of its own where there
// are two; with one GPU two ranks share it, over peer memory only.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "device/compare_bits.h"
#include "device/expert_slots.h"
#include "device/fill.h"
#include "device/grid_ranks.h"
#include "device/layer_case.h"
#include "moe/device_expert_parallel.h"
#include "parallel/nccl.h"
#include "parallel/thread_group.h"

namespace quadrille::testing {
namespace {

using parallel::Communicator;
using parallel::PeerRanks;

struct ExpertCase {
  const char* name;
  LayerSpec spec;                             // tokens: of all ranks
  std::vector<int64_t> rank_tokens;           // their sum is spec.tokens
  std::vector<std::vector<int32_t>> experts;  // of each rank, in the order of its slots
  bool nowhere = false;                       // some ids are -1, some no expert's
};
void PrintTo(const ExpertCase& c, std::ostream* out) {
  *out << c.name;
}

std::vector<int32_t> range(int32_t begin, int32_t end) {
  std::vector<int32_t> experts(static_cast<size_t>(end - begin));
  std::iota(experts.begin(), experts.end(), begin);
  return experts;
}

LayerSpec small_qwen() {
  LayerSpec spec;
  spec.hidden = 512;
  spec.width = 192;
  spec.experts = 32;
  spec.top_k = 8;
  spec.group = 64;
  spec.input = RouteInput::kSoftmaxBefore;
  spec.seed = 77;
  return spec;
}

std::vector<ExpertCase> expert_cases() {
  std::vector<ExpertCase> cases;
  LayerSpec spec = small_qwen();
  spec.tokens = 40;
  cases.push_back({"even", spec, {23, 17}, {range(0, 16), range(16, 32)}});
  cases.push_back({"rank_without_tokens", spec, {40, 0}, {range(0, 16), range(16, 32)}});
  cases.push_back({"rank_without_experts", spec, {11, 29}, {{}, range(0, 32)}});
  std::vector<int32_t> most = range(1, 32);
  std::reverse(most.begin(), most.end());
  cases.push_back({"uneven_and_out_of_order", spec, {1, 39}, {{0}, most}});
  std::vector<int32_t> more = range(8, 32);
  more.push_back(3);
  cases.push_back({"replicas", spec, {20, 20}, {range(0, 20), more}});
  spec.tokens = 2;
  cases.push_back({"two_tokens", spec, {1, 1}, {range(0, 16), range(16, 32)}});
  spec = small_qwen();
  spec.tokens = 300;
  spec.input = RouteInput::kIds;
  spec.shared = Shared::kGated;
  spec.bias = true;
  cases.push_back({"shared_expert_and_ids_of_nobody", spec, {100, 200}, {range(0, 9), range(9, 32)}, true});
  spec.tokens = 33;
  spec.numerics = kernels::Numerics::kVllm;
  spec.routing = Routing::kAllToOne;
  cases.push_back({"vllm_all_to_one", spec, {0, 33}, {range(0, 16), range(16, 32)}});
  spec = small_qwen();
  spec.tokens = 21;
  spec.top_k = 1;
  spec.weight_on_input = true;
  spec.input = RouteInput::kIds;
  spec.hidden = 264;  // rows that are no multiple of a record's line
  spec.group = 0;
  cases.push_back({"weight_on_input", spec, {13, 8}, {range(0, 16), range(16, 32)}});
  return cases;
}

// One rank's side of a case: all tokens on one GPU, then its own tokens with its experts.
class ExpertRank {
 public:
  ExpertRank(const ExpertCase& c, Communicator& host, device::Stream stream)
      : case_(c), host_(host), stream_(stream), pool_(1), whole_(c.spec, &pool_) {
    begins_.emplace(must(device::OwnedEvent::create()));
    ends_.emplace(must(device::OwnedEvent::create()));
    side_.emplace(must(device::OwnedStream::create()));
    make_batch();
    expected_ = run_on_one();
  }

  // Once as it is, then replays of a graph. Empty, or what differs.
  std::string run_on_ranks(parallel::DeviceCommunicator& ranks, const parallel::PeerMemory* region) {
    moe::DeviceMoeLayer layer = layer_of_rank(ranks);
    const int64_t most = *std::max_element(case_.rank_tokens.begin(), case_.rank_tokens.end());
    const moe::ExpertCall call{
        *must(kernels::peer_table()),
        placement(),
        case_.rank_tokens,
        {region, region != nullptr ? moe::expert_region_parts(layer, most) : moe::ExpertRegionParts{}}};
    const moe::DeviceBatch batch = own_batch();
    const size_t size = moe::expert_workspace_bytes(layer, most, region != nullptr);
    PoolMemory memory;
    void* workspace = memory.take_bytes(size, 256, kPoison, stream_);
    auto* status = memory.take<uint32_t>(1, 4, stream_, 0);
    const auto enqueue = [&]() -> Status {
      return moe::run_expert_parallel_layer(whole_.table(), layer, batch, call, workspace, size, streams(), status,
                                            kOptions);
    };
    must(device::synchronize(stream_));
    must(host_.barrier());
    must(enqueue());
    std::string problems = compare(batch, "first call");
    must(ranks.check());
    must(host_.barrier());
    const device::Graph graph = must(device::Graph::capture(stream_, enqueue));
    must(host_.barrier());
    for (int i = 0; i < 5; ++i) {
      if (batch.num_tokens > 0) must(device::fill(batch.out, kPoison, own_bytes(batch), stream_));
      must(graph.launch(stream_));
    }
    problems += compare(batch, "replays");
    must(ranks.check());
    const uint32_t bits = on_host<uint32_t>(status, 1, stream_)[0];
    const bool has_rows = !case_.experts[own()].empty();
    const uint32_t wanted = case_.nowhere && has_rows ? kernels::kStatusBadExpertId : 0u;
    if (bits != wanted) problems += fmt::format("status {:#x}, expected {:#x}; ", bits, wanted);
    const std::string harmed = memory.harmed(stream_);
    if (!harmed.empty()) problems += "memory was written around a " + harmed;
    return problems;
  }

  int64_t most_tokens() const { return *std::max_element(case_.rank_tokens.begin(), case_.rank_tokens.end()); }
  moe::DeviceMoeLayer layer_of_rank(parallel::DeviceCommunicator& ranks) {
    moe::DeviceMoeLayer layer = whole_.layer();
    const auto& experts = case_.experts[own()];
    layer.experts.gate_up = slots_of(whole_.layer().experts.gate_up, experts, &memory_, stream_);
    layer.experts.down = slots_of(whole_.layer().experts.down, experts, &memory_, stream_);
    layer.ranks.expert = &ranks;
    return layer;
  }

 private:
  // The same tiles everywhere: kernels are loaded before ranks wait for each other.
  static constexpr moe::DeviceLayerOptions kOptions{1, 1};

  size_t own() const { return static_cast<size_t>(host_.rank()); }
  int64_t first() const {
    return std::accumulate(case_.rank_tokens.begin(), case_.rank_tokens.begin() + host_.rank(), int64_t{0});
  }
  size_t own_bytes(const moe::DeviceBatch& batch) const {
    return static_cast<size_t>(batch.num_tokens * case_.spec.hidden) * sizeof(uint16_t);
  }
  moe::DeviceStreams streams() const { return {stream_, side_->get(), begins_->get(), ends_->get()}; }

  void make_batch() {
    const LayerSpec& spec = case_.spec;
    batch_.num_tokens = spec.tokens;
    auto* x = memory_.take<uint16_t>(spec.tokens * spec.hidden, 16, stream_);
    const int64_t* keys = memory_.copy_of(keys_in_order(spec.tokens), stream_);
    fill_activations(x, keys, spec.tokens, spec.hidden, spec.nonfinite, spec.seed, stream_);
    batch_.x = x;
    batch_.out = memory_.take<uint16_t>(spec.tokens * spec.hidden, 16, stream_);
    const LayerRoutes& routes = whole_.routes();
    if (spec.input != RouteInput::kIds) {
      batch_.router_logits = memory_.copy_of(routes.logits, stream_);
      return;
    }
    std::vector<int32_t> ids = routes.ids;
    for (size_t i = 0; case_.nowhere && i < ids.size(); i += 5) {
      ids[i] = i % 2 == 0 ? -1 : static_cast<int32_t>(spec.experts) + static_cast<int32_t>(i);
    }
    batch_.topk_ids = memory_.copy_of(ids, stream_);
    batch_.topk_weights = memory_.copy_of(routes.weights, stream_);
  }

  // The rows of this rank's tokens.
  moe::DeviceBatch own_batch() {
    const LayerSpec& spec = case_.spec;
    moe::DeviceBatch batch;
    batch.num_tokens = case_.rank_tokens[own()];
    if (batch.num_tokens == 0) return batch;
    batch.x = batch_.x + first() * spec.hidden;
    batch.out = memory_.take<uint16_t>(batch.num_tokens * spec.hidden, 16, stream_);
    if (batch_.router_logits != nullptr) {
      batch.router_logits = batch_.router_logits + first() * spec.experts;
    } else {
      batch.topk_ids = batch_.topk_ids + first() * spec.top_k;
      batch.topk_weights = batch_.topk_weights + first() * spec.top_k;
    }
    return batch;
  }

  std::vector<uint16_t> run_on_one() {
    const size_t size = moe::workspace_bytes(whole_.layer(), case_.spec.tokens);
    PoolMemory memory;
    void* workspace = memory.take_bytes(size, 256, kPoison, stream_);
    must(moe::run_device_layer(whole_.table(), whole_.layer(), batch_, workspace, size, streams(), nullptr, kOptions));
    auto rows = on_host<uint16_t>(batch_.out, case_.spec.tokens * case_.spec.hidden, stream_);
    return {rows.begin() + first() * case_.spec.hidden,
            rows.begin() + (first() + case_.rank_tokens[own()]) * case_.spec.hidden};
  }

  moe::DevicePlacement placement() {
    const moe::Placement placed = must(moe::Placement::of(case_.spec.experts, case_.experts));
    return {memory_.copy_of(moe::local_experts(placed, host_.rank()), stream_),
            memory_.copy_of(placed.serving_ranks(host_.rank()), stream_)};
  }

  std::string compare(const moe::DeviceBatch& batch, const char* what) {
    must(device::synchronize(stream_));
    if (batch.num_tokens == 0) return "";
    const auto found = on_host<uint16_t>(batch.out, batch.num_tokens * case_.spec.hidden, stream_);
    const std::string difference = bit_differences(found, expected_, case_.spec.hidden);
    return difference.empty() ? "" : fmt::format("{}: {}; ", what, difference);
  }

  const ExpertCase& case_;
  Communicator& host_;
  device::Stream stream_;
  ThreadPool pool_;
  LayerCase whole_;
  PoolMemory memory_;
  std::optional<device::OwnedEvent> begins_, ends_;
  std::optional<device::OwnedStream> side_;
  moe::DeviceBatch batch_;
  std::vector<uint16_t> expected_;
};

Status wrong(const Communicator& host, const std::string& problems) {
  if (problems.empty()) return {};
  return make_error(ErrorCode::kInvalidData, "rank {}: {}", host.rank(), problems);
}

// Runs a case on two rank threads; `body` gets each rank, its stream and its GPU.
Status on_two_ranks(const ExpertCase& c,
                    const std::function<Status(ExpertRank&, Communicator&, device::Stream, int)>& body) {
  const int gpus = must(device::count());
  return parallel::run_rank_threads(2, [&](Communicator& host) -> Status {
    const int ordinal = host.rank() % gpus;
    QD_TRY_STATUS(device::use(ordinal));
    QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
    ExpertRank rank(c, host, stream.get());
    return body(rank, host, stream.get(), ordinal);
  });
}

class ExpertParallel : public ::testing::TestWithParam<ExpertCase> {};

TEST_P(ExpertParallel, OverPeerMemoryEqualsOneGpu) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const Status done =
      on_two_ranks(GetParam(), [](ExpertRank& rank, Communicator& host, device::Stream stream, int ordinal) -> Status {
        QD_TRY(auto peers, PeerRanks::create(host, ordinal, stream, {std::chrono::seconds(20)}));
        PeersOnly ranks(*peers);
        const moe::ExpertRegionParts parts = moe::expert_region_parts(rank.layer_of_rank(ranks), rank.most_tokens());
        QD_TRY(auto region, peers->share(parts.total()));
        QD_TRY_STATUS(device::fill(region->at(host.rank()), kPoison, parts.total(), stream));
        QD_TRY_STATUS(wrong(host, rank.run_on_ranks(ranks, region.get())));
        QD_TRY_STATUS(region->close());
        return peers->close();
      });
  EXPECT_TRUE(done) << done.error().message;
}

TEST_P(ExpertParallel, OverCollectivesEqualsOneGpu) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  if (auto gpus = device::count(); !gpus || *gpus < 2) GTEST_SKIP() << "one GPU";
  const Status done =
      on_two_ranks(GetParam(), [](ExpertRank& rank, Communicator& host, device::Stream stream, int ordinal) -> Status {
        parallel::NcclOptions options;
        options.small = parallel::SmallReduction::kNccl;
        QD_TRY(auto ranks, parallel::nccl_communicator(host, ordinal, stream, options));
        return wrong(host, rank.run_on_ranks(*ranks, nullptr));
      });
  EXPECT_TRUE(done) << done.error().message;
}

INSTANTIATE_TEST_SUITE_P(Cases, ExpertParallel, ::testing::ValuesIn(expert_cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace quadrille::testing
