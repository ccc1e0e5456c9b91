// SPDX-License-Identifier: Apache-2.0
// In step over expert-parallel ranks, and over grids of expert by tensor-parallel ones: with random delays before every
// step of every rank, poison in every fresh buffer and two engines at once, 1,000 rounds give the bits of the undelayed
// run on every rank; with a hand-over of the layer left out, a barrier between ranks among them, they do not.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <barrier>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "device/compare_bits.h"
#include "device_step/expert_engine.h"
#include "parallel/thread_group.h"

namespace quadrille::testing {
namespace {

using device::HandOver;

constexpr int kRounds = 1000;
constexpr int kMutantRounds = 50;

// A kernel that waits for a peer may hold up one of that peer's in the same hardware queue, or its loading.
const bool kSetUp =
    ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1) == 0 && ::setenv("CUDA_MODULE_LOADING", "EAGER", 1) == 0;

struct Body {
  const char* name;
  GridShape shape;
  GridLinks links;
  bool one_gpu;
  // Sums of one shot wait on the device and take blocks of it; where two engines share a GPU they are short enough to
  // leave multiprocessors to the products that they wait for.
  int64_t all_tokens = kTokens;
  int num_gpus() const { return one_gpu ? 1 : shape.size(); }
};
void PrintTo(const Body& body, std::ostream* out) {
  *out << body.name;
}

const Body kBodies[] = {{"OneGpuPeers", {2, 1}, GridLinks::kPeers, true},
                        {"TwoGpusPeers", {2, 1}, GridLinks::kNcclOneShot, false},
                        {"TwoGpusCollectives", {2, 1}, GridLinks::kNccl, false},
                        {"OneGpuGrid", {2, 2}, GridLinks::kPeers, true, 8},
                        {"FourGpusPeers", {4, 1}, GridLinks::kNcclOneShot, false},
                        {"FourGpusGrid", {2, 2}, GridLinks::kNcclOneShot, false},
                        {"FourGpusGridCollectives", {2, 2}, GridLinks::kNccl, false}};

// What each rank gives for each version.
using Rows = std::vector<std::vector<uint16_t>>;
using RowsOfRanks = std::vector<Rows>;

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

// Rounds [0, rounds), in groups that are in flight together.
struct Plan {
  int rounds;
  int group;
};

// Ranks of all engines of a process. Taking and releasing memory may wait for kernels, which may wait for a rank that
// takes memory: engines are made one after the other, nobody begins before or gives memory back before all are done.
using Meeting = std::barrier<>;
class AtMeeting {
 public:
  explicit AtMeeting(Meeting& meeting) : meeting_(meeting) {}
  AtMeeting(const AtMeeting&) = delete;
  AtMeeting& operator=(const AtMeeting&) = delete;
  ~AtMeeting() { meeting_.arrive_and_drop(); }
  void wait() { meeting_.arrive_and_wait(); }

 private:
  Meeting& meeting_;
};

struct Run {
  Body body;
  Plan plan;
  RandomDelays* delays;
  RowsOfRanks* expected;  // filled where it is empty
  Difference* difference;
  int engine = 0, num_engines = 1;
};

void compare(const ExpertEngine& engine, const Run& run, int rank, int first) {
  Rows& expected = (*run.expected)[static_cast<size_t>(rank)];
  for (int round = first; round < std::min(run.plan.rounds, first + run.plan.group); ++round) {
    const auto version = static_cast<size_t>(round % kVersions);
    if (expected.size() <= version) {
      expected.push_back(engine.result(round));
    } else {
      run.difference->note(round, rank, bit_differences(engine.result(round), expected[version], kHidden));
    }
  }
}

Status run_rounds(parallel::Communicator& host, ExpertEngine& engine, GridRank& ranks, const Run& run) {
  for (int first = 0; first < run.plan.rounds; first += run.plan.group) {
    QD_TRY_STATUS(host.barrier());  // with one round at a time nobody is ahead when it begins
    const int end = std::min(run.plan.rounds, first + run.plan.group);
    for (int round = first; round < end; ++round) QD_TRY_STATUS(engine.enqueue(round));
    QD_TRY_STATUS(engine.drain());
    QD_TRY_STATUS(ranks.check());
    compare(engine, run, host.rank(), first);
  }
  if (const uint32_t bits = engine.status(); bits != 0) {
    run.difference->note(run.plan.rounds, host.rank(), fmt::format("status {:#x}", bits));
  }
  return {};
}

Status run_rank(parallel::Communicator& host, const Run& run, Meeting& all) {
  AtMeeting meeting(all);
  const int ordinal = run.body.one_gpu ? 0 : host.rank();
  QD_TRY_STATUS(device::use(ordinal));
  QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
  std::unique_ptr<GridRank> ranks;
  std::unique_ptr<ExpertEngine> engine;
  for (int turn = 0; turn < run.num_engines; ++turn) {
    if (turn == run.engine) {
      QD_TRY(ranks, GridRank::open(host, run.body.shape, run.body.links, ordinal, stream.get()));
      engine = std::make_unique<ExpertEngine>(host, run.body.shape, *ranks, run.body.all_tokens, stream.get());
    }
    meeting.wait();
  }
  if (run.delays != nullptr) engine->name_streams(run.delays);
  const Status done = run_rounds(host, *engine, *ranks, run);
  if (done) meeting.wait();
  QD_TRY_STATUS(done);
  return ranks->close();
}

Status run_engine(const Run& run, Meeting& all) {
  return parallel::run_rank_threads(run.body.shape.size(),
                                    [&](parallel::Communicator& host) { return run_rank(host, run, all); });
}

Status run_one_engine(const Run& run) {
  Meeting meeting(run.body.shape.size());
  return run_engine(run, meeting);
}

class StepExperts : public ::testing::TestWithParam<Body> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    const Result<int> gpus = device::count();
    if (!gpus || *gpus < GetParam().num_gpus()) GTEST_SKIP() << "needs " << GetParam().num_gpus() << " GPUs";
    ASSERT_TRUE(kSetUp);
    // The undelayed run: one round of each version, then again.
    const GridShape& shape = GetParam().shape;
    expected_.resize(static_cast<size_t>(shape.size()));
    Difference difference;
    must(run_one_engine({GetParam(), {2 * kVersions, 1}, nullptr, &expected_, &difference}));
    ASSERT_EQ(difference.round, -1) << difference.what;
    for (int r = 0; r < shape.size(); ++r) {
      const Rows& rows = expected_[static_cast<size_t>(r)];
      ASSERT_EQ(rows.size(), static_cast<size_t>(kVersions));
      ASSERT_NE(rows[0], rows[1]);
      ASSERT_NE(rows[1], rows[2]);
      ASSERT_NE(rows[2], rows[0]);
      const int first = shape.expert_of(r) * shape.tensor;
      ASSERT_EQ(rows, expected_[static_cast<size_t>(first)]) << "ranks " << r << " and " << first << " differ";
    }
  }

  RowsOfRanks expected_;  // of each rank
};

TEST_P(StepExperts, ThousandRoundsOnTwoEngines) {
  RandomDelays delays(5);
  const Harnessed harnessed(&delays);
  Difference differences[2];
  Status done[2];
  {
    Meeting meeting(2 * GetParam().shape.size());
    std::vector<std::jthread> threads;
    for (size_t e = 0; e < 2; ++e) {
      threads.emplace_back([&, e] {
        const Plan plan{kRounds, ExpertEngine::kInFlight};
        done[e] = run_engine({GetParam(), plan, &delays, &expected_, &differences[e], static_cast<int>(e), 2}, meeting);
      });
    }
    threads.clear();  // joins before the meeting ends
  }
  for (size_t e = 0; e < 2; ++e) {
    EXPECT_TRUE(done[e]) << "engine " << e << ": " << done[e].error().message;
    EXPECT_EQ(differences[e].round, -1) << "engine " << e << ": " << differences[e].what;
  }
  EXPECT_GT(delays.steps(), 2 * GetParam().shape.size() * kRounds * 13);
  EXPECT_GT(delays.poisoned_bytes(), 0);
}

// A hand-over, and what comes late: a stream of all ranks, or of those of one expert rank.
struct Mutant {
  HandOver site;
  Role slow;
  bool of_one_rank;
};

std::vector<Mutant> mutants_of(const Body& body) {
  std::vector<Mutant> mutants = {{HandOver::kSharedBegins, Role::kMain, false},
                                 {HandOver::kSharedEnds, Role::kSide, false}};
  if (body.shape.tensor > 1) {
    mutants.push_back({HandOver::kSharedSplit, Role::kSide, false});
    mutants.push_back({HandOver::kSharedAgreed, Role::kMain, false});
  }
  // Collectives carry what they wait for: there is no barrier to leave out.
  if (body.links == GridLinks::kNccl) return mutants;
  mutants.push_back({HandOver::kTokensSent, Role::kMain, true});
  mutants.push_back({HandOver::kRowsReturned, Role::kMain, true});
  return mutants;
}

std::vector<int> ranks_of_last_expert_rank(const GridShape& shape) {
  std::vector<int> ranks;
  for (int r = shape.size() - shape.tensor; r < shape.size(); ++r) ranks.push_back(r);
  return ranks;
}

class StepExpertMutants : public StepExperts {};

TEST_P(StepExpertMutants, AHandOverLeftOutShowsWithinFiftyRounds) {
  for (const Mutant& mutant : mutants_of(GetParam())) {
    for (const bool drops : {false, true}) {
      RandomDelays delays(6);
      delays.slow_only(mutant.slow,
                       mutant.of_one_rank ? ranks_of_last_expert_rank(GetParam().shape) : std::vector<int>{});
      if (drops) delays.drop(mutant.site);
      const Harnessed harnessed(&delays);
      Difference difference;
      const Plan plan{kMutantRounds, drops ? 1 : ExpertEngine::kInFlight};
      must(run_one_engine({GetParam(), plan, &delays, &expected_, &difference}));
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
INSTANTIATE_TEST_SUITE_P(Bodies, StepExperts, ::testing::ValuesIn(kBodies), body_name);
INSTANTIATE_TEST_SUITE_P(Bodies, StepExpertMutants, ::testing::ValuesIn(kBodies), body_name);

}  // namespace
}  // namespace quadrille::testing
