// SPDX-License-Identifier: Apache-2.0
// The layer over a grid of two expert-parallel by two tensor-parallel ranks: what `hopper` gives with two
// tensor-parallel ranks, bit for bit, on every rank; eager and from a graph. The four ranks share one GPU over peer
// memory, or have a GPU each.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "device/compare_bits.h"
#include "device/expert_slots.h"
#include "device/grid_ranks.h"
#include "device/split_case.h"
#include "parallel/thread_group.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using parallel::Communicator;

// A kernel that waits for a peer may hold up one of that peer's in the same hardware queue.
const bool kManyQueues = ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1) == 0;

constexpr GridShape kShape{2, 2};

struct GridCase {
  SplitSpec spec;                             // ranks: the tensor-parallel ones
  std::vector<int64_t> rank_tokens;           // of each expert rank
  std::vector<std::vector<int32_t>> experts;  // of each expert rank, in the order of its slots
};
void PrintTo(const GridCase& c, std::ostream* out) {
  PrintTo(c.spec, out);
}

// Sums stay below 64 blocks a rank: on a shared GPU those that wait leave room for the products that they wait for.
std::vector<GridCase> grid_cases() {
  return {
      {{.name = "QwenLike", .hidden = 2048, .width = 768, .experts = 8, .top_k = 4},
       {5, 2},
       {{0, 1, 2, 3}, {4, 5, 6, 7}}},
      {{.name = "SharedThroughAGroup", .shared_width = 128, .shared_gate = true}, {3, 4}, {{5}, {4, 3, 2, 1, 0}}},
      {{.name = "UnevenGroup32", .width = 352, .group = 32, .shared_width = 512, .bias = true},
       {1, 6},
       {{0, 2, 4}, {1, 3, 5}}},
      {{.name = "Vllm", .width = 384, .numerics = Numerics::kVllm, .shared_width = 256, .bias = true},
       {0, 7},
       {{3, 4, 5}, {0, 1, 2}}},
      {{.name = "LocalScale", .width = 384, .shared_width = 384, .scale = moe::SplitScale::kLocal},
       {2, 5},
       {{0, 1, 2}, {3, 4, 5}}},
      {{.name = "WeightOnInput", .top_k = 1, .shared_width = 256, .weight_on_input = true},
       {4, 3},
       {{0, 1, 2, 3, 4}, {5}}},
      {{.name = "Replicas", .shared_width = 256}, {4, 3}, {{0, 1, 2, 3}, {5, 4, 3, 2}}},
      {{.name = "RankWithoutExperts", .shared_width = 256}, {4, 3}, {{}, {0, 1, 2, 3, 4, 5}}},
      {{.name = "Nonfinite", .tokens = 24, .width = 384, .nonfinite = true}, {11, 13}, {{0, 1, 2}, {3, 4, 5}}},
      {{.name = "ManyRows", .tokens = 100, .experts = 3, .shared_width = 256}, {60, 40}, {{1}, {2, 0}}},
  };
}

// One rank of a case at work.
class WorkingRank {
 public:
  WorkingRank(const GridCase& c, const SplitCase& split, Communicator& host, GridRank& ranks, device::Stream stream)
      : case_(c),
        expert_rank_(kShape.expert_of(host.rank())),
        stream_(stream),
        table_(*must(kernels::device_table())),
        peer_table_(*must(kernels::peer_table())),
        side_(must(device::OwnedStream::create())),
        begins_(must(device::OwnedEvent::create())),
        ends_(must(device::OwnedEvent::create())) {
    must(peer_table_.load());
    split.make_rank(table_, kShape.tensor_of(host.rank()), stream, &whole_);
    load_kernels(kShape.tensor_of(host.rank()));
    make_layer(ranks);
    make_batch();
    region_ = must(ranks.share(layer_, most_tokens()));
    size_ = moe::expert_workspace_bytes(layer_, most_tokens(), region_.memory != nullptr);
    workspace_ = memory_.take_bytes(size_, 256, kPoison, stream);
    status_ = memory_.take<uint32_t>(1, 4, stream, 0);
    must(device::synchronize(stream));
  }

  // Poison everywhere, then the layer; the shared expert beside the others or behind them. May be captured.
  Status enqueue(bool beside) {
    QD_TRY_STATUS(device::fill(workspace_, kPoison, size_, stream_));
    if (batch_.num_tokens > 0) QD_TRY_STATUS(device::fill(batch_.out, kPoison, own_values() * 2, stream_));
    const moe::ExpertCall call{peer_table_, placement_, case_.rank_tokens, region_};
    moe::DeviceStreams one;
    one.main = stream_;
    return moe::run_expert_parallel_layer(table_, layer_, batch_, call, workspace_, size_, beside ? streams() : one,
                                          status_, kOptions);
  }

  // What differs from the rows of all tokens; waits. "" nothing.
  std::string problems(const std::vector<uint16_t>& expected) {
    must(device::synchronize(stream_));
    std::string text;
    if (batch_.num_tokens > 0) {
      const auto found = on_host<uint16_t>(batch_.out, static_cast<int64_t>(own_values()), stream_);
      const auto first = static_cast<size_t>(first_token() * case_.spec.hidden);
      text = bit_differences(std::span<const uint16_t>(found), std::span(expected).subspan(first, own_values()),
                             case_.spec.hidden);
    }
    const uint32_t bits = on_host<uint32_t>(status_, 1, stream_)[0];
    if (bits != 0) text += fmt::format("; status {:#x}", bits);
    const std::string harmed = memory_.harmed(stream_);
    if (!harmed.empty()) text += "; memory was written around a " + harmed;
    return text;
  }

 private:
  static constexpr moe::DeviceLayerOptions kOptions{1, 1};

  int64_t first_token() const {
    return std::accumulate(case_.rank_tokens.begin(), case_.rank_tokens.begin() + expert_rank_, int64_t{0});
  }
  int64_t most_tokens() const { return *std::max_element(case_.rank_tokens.begin(), case_.rank_tokens.end()); }
  size_t own_values() const { return static_cast<size_t>(batch_.num_tokens * case_.spec.hidden); }
  moe::DeviceStreams streams() const { return {stream_, side_.get(), begins_.get(), ends_.get()}; }

  // Loading a kernel at its first launch may wait for those that run, which may wait for a rank that loads: the whole
  // layer runs once with nobody to wait for.
  void load_kernels(int tensor_rank) {
    SilentRanks silent(tensor_rank, kShape.tensor);
    moe::DeviceMoeLayer layer = whole_.layer;
    layer.ranks.tensor = &silent;
    PoolMemory memory;
    const size_t size = moe::workspace_bytes(layer, case_.spec.tokens);
    void* workspace = memory.take_bytes(size, 256, kPoison, stream_);
    must(moe::run_device_layer(table_, layer, whole_.batch, workspace, size, streams(), nullptr, kOptions));
    must(device::synchronize(stream_));
  }

  void make_layer(GridRank& ranks) {
    const auto& experts = case_.experts[static_cast<size_t>(expert_rank_)];
    layer_ = whole_.layer;
    layer_.experts.gate_up = slots_of(whole_.layer.experts.gate_up, experts, &memory_, stream_);
    layer_.experts.down = slots_of(whole_.layer.experts.down, experts, &memory_, stream_);
    layer_.ranks.tensor = ranks.tensor();
    layer_.ranks.expert = &ranks.expert();
    const moe::Placement placed = must(moe::Placement::of(case_.spec.experts, case_.experts));
    placement_ = {memory_.copy_of(moe::local_experts(placed, expert_rank_), stream_),
                  memory_.copy_of(placed.serving_ranks(expert_rank_), stream_)};
  }

  void make_batch() {
    const int64_t first = first_token();
    batch_.num_tokens = case_.rank_tokens[static_cast<size_t>(expert_rank_)];
    if (batch_.num_tokens == 0) return;
    batch_.x = whole_.batch.x + first * case_.spec.hidden;
    batch_.topk_ids = whole_.batch.topk_ids + first * case_.spec.top_k;
    batch_.topk_weights = whole_.batch.topk_weights + first * case_.spec.top_k;
    batch_.out = memory_.take<uint16_t>(static_cast<int64_t>(own_values()), 16, stream_);
  }

  const GridCase& case_;
  int expert_rank_;
  device::Stream stream_;
  const kernels::DeviceTable& table_;
  const kernels::PeerTable& peer_table_;
  device::OwnedStream side_;
  device::OwnedEvent begins_, ends_;
  SplitRank whole_;
  PoolMemory memory_;
  moe::DeviceMoeLayer layer_;
  moe::DeviceBatch batch_;
  moe::DevicePlacement placement_;
  moe::ExpertRegion region_;
  size_t size_ = 0;
  void* workspace_ = nullptr;
  uint32_t* status_ = nullptr;
};

Status run_rank(const GridCase& c, const SplitCase& split, const std::vector<uint16_t>& expected, GridLinks links,
                int ordinal, Communicator& host) {
  QD_TRY_STATUS(device::use(ordinal));
  QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
  QD_TRY(const auto ranks, GridRank::open(host, kShape, links, ordinal, stream.get()));
  WorkingRank rank(c, split, host, *ranks, stream.get());
  const auto compare = [&](const char* what) -> Status {
    const std::string problems = rank.problems(expected);
    QD_TRY_STATUS(ranks->check());
    if (problems.empty()) return {};
    return make_error(ErrorCode::kInvalidData, "{}, expert rank {}, tensor rank {}: {}", what,
                      kShape.expert_of(host.rank()), kShape.tensor_of(host.rank()), problems);
  };
  QD_TRY_STATUS(host.barrier());
  QD_TRY_STATUS(rank.enqueue(true));
  QD_TRY_STATUS(compare("eager"));
  QD_TRY_STATUS(host.barrier());  // what makes a graph waits for nobody's kernel
  // The branches of graphs that share a GPU may share its queues: there, no branch.
  const bool branches = links != GridLinks::kPeers;
  QD_TRY(const device::Graph graph, device::Graph::capture(stream.get(), [&] { return rank.enqueue(branches); }));
  QD_TRY_STATUS(host.barrier());
  for (int replay = 0; replay < 3; ++replay) QD_TRY_STATUS(graph.launch(stream.get()));
  QD_TRY_STATUS(compare("graph"));
  QD_TRY_STATUS(host.barrier());
  return ranks->close();
}

class ExpertGrid : public ::testing::TestWithParam<GridCase> {
 protected:
  static void run(GridLinks links, bool one_gpu) {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    const auto gpus = device::count();
    if (!one_gpu && (!gpus || *gpus < kShape.size())) GTEST_SKIP() << "needs " << kShape.size() << " GPUs";
    ASSERT_TRUE(kManyQueues);
    const SplitCase split(GetParam().spec);
    const std::vector<uint16_t> expected = split.expected();
    const Status done = parallel::run_rank_threads(kShape.size(), [&](Communicator& host) {
      return run_rank(GetParam(), split, expected, links, one_gpu ? 0 : host.rank(), host);
    });
    EXPECT_TRUE(done) << done.error().message;
  }
};

TEST_P(ExpertGrid, RanksOnOneGpuEqualTensorParallel) {
  run(GridLinks::kPeers, true);
}
TEST_P(ExpertGrid, FourGpusEqualTensorParallel) {
  run(GridLinks::kNcclOneShot, false);
}
TEST_P(ExpertGrid, FourGpusOverCollectivesEqualTensorParallel) {
  run(GridLinks::kNccl, false);
}

INSTANTIATE_TEST_SUITE_P(Cases, ExpertGrid, ::testing::ValuesIn(grid_cases()),
                         [](const auto& tested) { return std::string(tested.param.spec.name); });

}  // namespace
}  // namespace quadrille::testing
