// SPDX-License-Identifier: Apache-2.0
// In step over two tensor-parallel ranks: with random delays before every step of every rank, poison in every fresh
// buffer and two engines at once, 1,000 rounds give the bits of the undelayed run on both ranks; with a hand-over of
// the split layer left out they do not. Over NCCL with a GPU each, and on one GPU that both ranks share.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "device/compare_bits.h"
#include "device/loopback_ranks.h"
#include "device_step/rank_engine.h"
#include "parallel/nccl.h"
#include "parallel/thread_group.h"

namespace quadrille::testing {
namespace {

using device::HandOver;

constexpr int kRanks = 2;
constexpr int kRounds = 1000;
constexpr int kMutantRounds = 50;

// A kernel that is loaded when it is first launched may wait for those that run, and they for a rank that loads.
const bool kLoadsAtOnce = ::setenv("CUDA_MODULE_LOADING", "EAGER", 1) == 0;

using Rows = std::vector<std::vector<uint16_t>>;  // of each version

// The first round that differs, or none.
struct Difference {
  std::mutex mutex;
  int round = -1;
  std::string what;

  void note(int number, int rank, const std::string& text) {
    const std::scoped_lock lock(mutex);
    if (text.empty() || (round >= 0 && round <= number)) return;
    round = number;
    what = fmt::format("round {} on rank {}: {}", number, rank, text);
  }
};

// Rounds [0, rounds) of an engine, in groups that are in flight together.
struct Plan {
  int rounds;
  int group;
};

// Compares rounds [first, end) of one rank; the first of each version that rank 0 meets makes the list.
void compare(const RankEngine& engine, int rank, int first, int end, Rows* expected, Difference* difference) {
  for (int round = first; round < end; ++round) {
    const auto version = static_cast<size_t>(round % kVersions);
    if (rank == 0 && expected->size() <= version) {
      expected->push_back(engine.result(round));
      continue;
    }
    difference->note(round, rank, bit_differences(engine.result(round), (*expected)[version], kHidden));
  }
}

// How the two ranks of an engine run.
struct Body {
  const char* name;
  int num_gpus;
  // Runs all rounds and compares both ranks with `expected`, which rank 0 fills where it is empty.
  std::function<Status(const Plan&, RandomDelays*, Rows*, Difference*)> run;
};
void PrintTo(const Body& body, std::ostream* out) {
  *out << body.name;
}

Status run_on_one_gpu(const Plan& plan, RandomDelays* delays, Rows* expected, Difference* difference) {
  QD_TRY_STATUS(device::use(0));
  QD_TRY(const device::OwnedStream origin, device::OwnedStream::create());
  LoopbackRanks ranks(kRanks, static_cast<size_t>(kTokens * kHidden), origin.get());
  std::vector<std::unique_ptr<RankEngine>> engines;
  for (int r = 0; r < kRanks; ++r) {
    engines.push_back(std::make_unique<RankEngine>(&ranks.communicator(r), ranks.stream(r)));
    if (delays != nullptr) engines.back()->name_streams(delays);
  }
  for (int first = 0; first < plan.rounds; first += plan.group) {
    const int end = std::min(plan.rounds, first + plan.group);
    for (int round = first; round < end; ++round) {
      QD_TRY_STATUS(ranks.run(origin.get(), [&](int r) { return engines[static_cast<size_t>(r)]->enqueue(round); }));
    }
    for (int r = 0; r < kRanks; ++r) {
      QD_TRY_STATUS(engines[static_cast<size_t>(r)]->drain());
      compare(*engines[static_cast<size_t>(r)], r, first, end, expected, difference);
    }
  }
  for (const auto& engine : engines) {
    if (engine->status() != 0) return make_error(ErrorCode::kInvalidData, "status {:#x}", engine->status());
  }
  return {};
}

Status run_rank(parallel::Communicator& host, const Plan& plan, parallel::SmallReduction small, RandomDelays* delays,
                Rows* expected, Difference* difference) {
  QD_TRY_STATUS(device::use(host.rank()));
  QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
  parallel::NcclOptions options;
  options.small = small;
  QD_TRY(const auto communicator, parallel::nccl_communicator(host, host.rank(), stream.get(), options));
  RankEngine engine(communicator.get(), stream.get());
  if (delays != nullptr) engine.name_streams(delays);
  for (int first = 0; first < plan.rounds; first += plan.group) {
    const int end = std::min(plan.rounds, first + plan.group);
    for (int round = first; round < end; ++round) QD_TRY_STATUS(engine.enqueue(round));
    QD_TRY_STATUS(engine.drain());
    QD_TRY_STATUS(communicator->check());
    // Rank 0 writes the expected rows before the others read them.
    if (host.rank() == 0) compare(engine, 0, first, end, expected, difference);
    QD_TRY_STATUS(host.barrier());
    if (host.rank() != 0) compare(engine, host.rank(), first, end, expected, difference);
  }
  if (engine.status() != 0) return make_error(ErrorCode::kInvalidData, "status {:#x}", engine.status());
  return communicator->close();
}

Body over_gpus(const char* name, parallel::SmallReduction small) {
  return {name, kRanks, [small](const Plan& plan, RandomDelays* delays, Rows* expected, Difference* difference) {
            return parallel::run_rank_threads(kRanks, [&](parallel::Communicator& host) {
              return run_rank(host, plan, small, delays, expected, difference);
            });
          }};
}

const Body kBodies[] = {{"OneGpu", 1, run_on_one_gpu},
                        over_gpus("TwoGpusAuto", parallel::SmallReduction::kAuto),
                        over_gpus("TwoGpusNccl", parallel::SmallReduction::kNccl)};

class StepRanks : public ::testing::TestWithParam<Body> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    const Result<int> gpus = device::count();
    if (!gpus || *gpus < GetParam().num_gpus) GTEST_SKIP() << "needs " << GetParam().num_gpus << " GPUs";
    ASSERT_TRUE(kLoadsAtOnce);
    // The undelayed run: one round of each version, then again.
    Difference difference;
    must(GetParam().run({2 * kVersions, 1}, nullptr, &expected_, &difference));
    ASSERT_EQ(difference.round, -1) << difference.what;
    ASSERT_EQ(expected_.size(), static_cast<size_t>(kVersions));
  }

  Rows expected_;
};

TEST_P(StepRanks, ThousandRoundsOnTwoEngines) {
  RandomDelays delays(3);
  const Harnessed harnessed(&delays);
  Difference differences[2];
  Status done[2];
  {
    std::vector<std::jthread> threads;
    for (size_t e = 0; e < 2; ++e) {
      threads.emplace_back([&, e] {
        try {
          done[e] = GetParam().run({kRounds, RankEngine::kInFlight}, &delays, &expected_, &differences[e]);
        } catch (const std::exception& failure) {
          done[e] = make_error(ErrorCode::kIo, "{}", failure.what());
        }
      });
    }
  }
  for (size_t e = 0; e < 2; ++e) {
    EXPECT_TRUE(done[e]) << "engine " << e << ": " << done[e].error().message;
    EXPECT_EQ(differences[e].round, -1) << "engine " << e << ": " << differences[e].what;
  }
  EXPECT_GT(delays.steps(), 2 * kRanks * kRounds * 14);
  EXPECT_GT(delays.poisoned_bytes(), 0);
}

// Every hand-over of a split layer, and the stream that would have been waited for.
struct Mutant {
  HandOver site;
  Role slow;
};
const Mutant kMutants[] = {{HandOver::kSharedSplit, Role::kSide},
                           {HandOver::kSharedAgreed, Role::kMain},
                           {HandOver::kSharedBegins, Role::kMain},
                           {HandOver::kSharedEnds, Role::kSide}};

class StepRankMutants : public StepRanks {};

TEST_P(StepRankMutants, AHandOverLeftOutShowsWithinFiftyRounds) {
  for (const Mutant& mutant : kMutants) {
    for (const bool drops : {false, true}) {
      RandomDelays delays(4);
      delays.slow_only(mutant.slow);
      if (drops) delays.drop(mutant.site);
      const Harnessed harnessed(&delays);
      Difference difference;
      const Plan plan{kMutantRounds, drops ? 1 : RankEngine::kInFlight};
      must(GetParam().run(plan, &delays, &expected_, &difference));
      const char* name = device::hand_over_name(mutant.site);
      if (!drops) {
        EXPECT_EQ(difference.round, -1) << name << " in its place: " << difference.what;
        continue;
      }
      EXPECT_NE(difference.round, -1) << name << " was left out and nothing differs";
      std::printf("%s left out: %s\n", name, difference.what.c_str());
    }
  }
}

std::string body_name(const ::testing::TestParamInfo<Body>& body) {
  return body.param.name;
}
INSTANTIATE_TEST_SUITE_P(Bodies, StepRanks, ::testing::ValuesIn(kBodies), body_name);
// The hand-overs of the layer are the same whatever reduces.
INSTANTIATE_TEST_SUITE_P(Bodies, StepRankMutants, ::testing::Values(kBodies[0], kBodies[1]), body_name);

}  // namespace
}  // namespace quadrille::testing
