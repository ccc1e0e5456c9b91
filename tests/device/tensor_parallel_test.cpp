// SPDX-License-Identifier: Apache-2.0
// Layers split over tensor-parallel ranks against the CPU table `hopper` with as many rank threads, bit for bit on
// every rank: ranks that share one GPU (loopback_ranks.h), and rank threads with a GPU each over NCCL.
#include <gtest/gtest.h>

#include <algorithm>

#include "device/compare_bits.h"
#include "device/loopback_ranks.h"
#include "device/split_case.h"
#include "parallel/nccl.h"
#include "parallel/thread_group.h"

namespace quadrille::testing {
namespace {

using kernels::Activation;
using kernels::Numerics;
using moe::SplitScale;

std::vector<SplitSpec> specs() {
  return {
      {.name = "QwenLike", .ranks = 2, .tokens = 4, .hidden = 2048, .width = 768, .experts = 8, .top_k = 4},
      {.name = "QwenLikeThroughGroups", .ranks = 4, .tokens = 4, .hidden = 2048, .width = 768, .top_k = 2},
      {.name = "SharedThroughAGroup", .ranks = 2, .shared_width = 128, .shared_gate = true},
      {.name = "UnevenGroup32", .ranks = 3, .width = 352, .group = 32, .shared_width = 512, .bias = true},
      {.name = "UnevenUnit8", .ranks = 5, .hidden = 128, .width = 192, .group = 64, .bias = true, .width_unit = 8},
      {.name = "Group64", .ranks = 4, .tokens = 33, .width = 320, .group = 64, .shared_width = 256},
      {.name = "Channel", .ranks = 3, .hidden = 136, .width = 264, .group = 0, .shared_width = 520, .bias = true},
      {.name = "Vllm", .ranks = 2, .width = 384, .numerics = Numerics::kVllm, .shared_width = 256, .bias = true},
      {.name = "VllmThroughGroups",
       .ranks = 4,
       .width = 384,
       .numerics = Numerics::kVllm,
       .shared_width = 384,
       .shared_gate = true,
       .width_unit = 8},
      {.name = "VllmGroup32", .ranks = 3, .width = 224, .group = 32, .numerics = Numerics::kVllm},
      {.name = "VllmChannel", .ranks = 2, .width = 136, .group = 0, .numerics = Numerics::kVllm},
      {.name = "WeightOnInput", .ranks = 2, .top_k = 1, .shared_width = 256, .weight_on_input = true},
      {.name = "LocalScale", .ranks = 3, .width = 384, .shared_width = 384, .scale = SplitScale::kLocal},
      {.name = "LocalScaleVllm", .ranks = 2, .width = 128, .numerics = Numerics::kVllm, .scale = SplitScale::kLocal},
      {.name = "ClampedWithBias", .ranks = 2, .bias = true, .activation = Activation::kClampedSwiglu},
      {.name = "NotGated", .ranks = 2, .shared_width = 256, .activation = Activation::kRelu2},
      {.name = "Nonfinite", .ranks = 3, .tokens = 24, .width = 384, .shared_width = 384, .nonfinite = true},
      {.name = "NonfiniteVllm", .ranks = 2, .tokens = 24, .numerics = Numerics::kVllm, .nonfinite = true},
      {.name = "ManyRows", .ranks = 2, .tokens = 400, .hidden = 256, .experts = 3, .shared_width = 256},
      {.name = "OneToken", .ranks = 2, .tokens = 1, .shared_width = 256, .shared_gate = true},
      {.name = "NoToken", .ranks = 2, .tokens = 0, .shared_width = 256},
  };
}

// A rank of a case at work: its shard, memory for calls, streams.
class WorkingRank {
 public:
  WorkingRank(const SplitCase& split, int rank, parallel::DeviceCommunicator* communicator, device::Stream main)
      : spec_(split.spec()),
        table_(*must(kernels::device_table())),
        main_(main),
        side_(must(device::OwnedStream::create())),
        begins_(must(device::OwnedEvent::create())),
        ends_(must(device::OwnedEvent::create())) {
    split.make_rank(table_, rank, main, &rank_);
    rank_.layer.ranks.tensor = communicator;
    size_ = moe::workspace_bytes(rank_.layer, spec_.tokens);
    workspace_ = rank_.memory.take_bytes(size_, 256, kPoison, main);
    status_ = rank_.memory.take<uint32_t>(1, 4, main, 0);
    must(device::synchronize(main));
  }

  // Poison everywhere, then the layer. May be captured.
  Status enqueue(bool beside, uint8_t poison, const moe::DeviceLayerOptions& options = {}) {
    const auto out_bytes = static_cast<size_t>(spec_.tokens * spec_.hidden) * 2;
    if (size_ != 0) QD_TRY_STATUS(device::fill(workspace_, poison, size_, main_));
    if (out_bytes != 0) QD_TRY_STATUS(device::fill(rank_.batch.out, kPoison, out_bytes, main_));
    moe::DeviceStreams streams;
    streams.main = main_;
    if (beside) {
      streams.side = side_.get();
      streams.shared_begins = begins_.get();
      streams.shared_ends = ends_.get();
    }
    return moe::run_device_layer(table_, rank_.layer, rank_.batch, workspace_, size_, streams, status_, options);
  }
  // What differs from `expected`; waits. "" nothing.
  std::string problems(const std::vector<uint16_t>& expected) {
    const auto found = on_host<uint16_t>(rank_.batch.out, spec_.tokens * spec_.hidden, main_);
    std::string text = bit_differences(found, expected, spec_.hidden);
    const uint32_t bits = on_host<uint32_t>(status_, 1, main_)[0];
    if (bits != 0) text += fmt::format("; status {:#x}", bits);
    const std::string harmed = rank_.memory.harmed(main_);
    if (!harmed.empty()) text += "; memory was written around a " + harmed;
    return text;
  }

 private:
  SplitSpec spec_;
  const kernels::DeviceTable& table_;
  device::Stream main_;
  device::OwnedStream side_;
  device::OwnedEvent begins_, ends_;
  SplitRank rank_;
  size_t size_ = 0;
  void* workspace_ = nullptr;
  uint32_t* status_ = nullptr;
};

size_t most_floats(const SplitSpec& spec) {
  return static_cast<size_t>(std::max<int64_t>(spec.tokens, 1) * std::max(spec.hidden, spec.top_k + 1));
}

class TensorParallel : public ::testing::TestWithParam<SplitSpec> {};

TEST_P(TensorParallel, RanksOnOneGpuEqualHopper) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  must(device::use(0));
  const SplitSpec& spec = GetParam();
  const SplitCase split(spec);
  const std::vector<uint16_t> expected = split.expected();
  const device::OwnedStream origin = must(device::OwnedStream::create());
  LoopbackRanks ranks(spec.ranks, most_floats(spec), origin.get());
  std::vector<std::unique_ptr<WorkingRank>> working;
  for (int r = 0; r < spec.ranks; ++r) {
    working.push_back(std::make_unique<WorkingRank>(split, r, &ranks.communicator(r), ranks.stream(r)));
  }
  const auto expect_equal = [&](const char* what) {
    must(device::synchronize(origin.get()));
    for (int r = 0; r < spec.ranks; ++r) {
      EXPECT_EQ(working[static_cast<size_t>(r)]->problems(expected), "") << what << ", rank " << r;
    }
  };
  const auto run = [&](bool beside, uint8_t poison, const moe::DeviceLayerOptions& options) {
    return ranks.run(origin.get(),
                     [&](int r) { return working[static_cast<size_t>(r)]->enqueue(beside, poison, options); });
  };
  must(run(true, kPoison, {}));
  expect_equal("eager");
  must(run(false, 0x7f, {1, 0}));
  expect_equal("one stream, other tiles");
  if (spec.tokens == 0 || HasFailure()) return;
  const device::Graph graph =
      must(device::Graph::capture(origin.get(), [&]() -> Status { return run(true, kPoison, {}); }));
  for (int replay = 0; replay < 2; ++replay) must(graph.launch(origin.get()));
  expect_equal("graph");
}

TEST_P(TensorParallel, RanksWithAGpuEachEqualHopper) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const SplitSpec& spec = GetParam();
  if (auto gpus = device::count(); !gpus || *gpus < spec.ranks) GTEST_SKIP() << "needs " << spec.ranks << " GPUs";
  const SplitCase split(spec);
  const std::vector<uint16_t> expected = split.expected();
  const Status done = parallel::run_rank_threads(spec.ranks, [&](parallel::Communicator& host) -> Status {
    QD_TRY_STATUS(device::use(host.rank()));
    QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
    QD_TRY(const auto communicator, parallel::nccl_communicator(host, host.rank(), stream.get()));
    WorkingRank rank(split, host.rank(), communicator.get(), stream.get());
    const auto compare = [&](const char* what) -> Status {
      const std::string problems = rank.problems(expected);
      QD_TRY_STATUS(communicator->check());
      if (problems.empty()) return {};
      return make_error(ErrorCode::kInvalidData, "{}, rank {}: {}", what, host.rank(), problems);
    };
    // The first call connects the GPUs, which no graph can hold.
    QD_TRY_STATUS(rank.enqueue(true, kPoison));
    QD_TRY_STATUS(compare("eager"));
    QD_TRY_STATUS(rank.enqueue(false, 0x7f, {1, 0}));
    QD_TRY_STATUS(compare("one stream, other tiles"));
    if (spec.tokens == 0) return communicator->close();
    QD_TRY(const device::Graph graph,
           device::Graph::capture(stream.get(), [&] { return rank.enqueue(true, kPoison); }));
    for (int replay = 0; replay < 3; ++replay) QD_TRY_STATUS(graph.launch(stream.get()));
    QD_TRY_STATUS(compare("graph"));
    QD_TRY_STATUS(device::synchronize(stream.get()));
    return communicator->close();
  });
  EXPECT_TRUE(done) << done.error().message;
}

INSTANTIATE_TEST_SUITE_P(Layers, TensorParallel, ::testing::ValuesIn(specs()),
                         [](const auto& spec) { return std::string(spec.param.name); });

}  // namespace
}  // namespace quadrille::testing
