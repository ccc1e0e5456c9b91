// SPDX-License-Identifier: Apache-2.0
// In step: with random delays before every internal step, poison in every fresh buffer and two engines at once, 1,000
// rounds at the shapes of Qwen3-30B-A3B give the bits of the undelayed run. And the test sees what it is for: with any
// one hand-over between streams left out it fails within 50 rounds.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <memory>
#include <optional>
#include <thread>

#include "device/compare_bits.h"
#include "device_step/step_engine.h"

namespace quadrille::testing {
namespace {

using device::HandOver;

constexpr int kRounds = 1000;
constexpr int kMutantRounds = 50;

// Streams that share a hardware queue wait for each other and would hide what is missing.
const bool kManyQueues = ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1) == 0;

class Steps : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!device::available()) return;
    stream_.emplace(must(device::OwnedStream::create()));
    data_ = std::make_unique<StepData>(stream_->get());
    // The undelayed result of each version, one round at a time.
    StepEngine engine(*data_);
    for (int version = 0; version < kVersions; ++version) {
      engine.enqueue(version);
      engine.drain();
      expected_.push_back(engine.result(version));
    }
  }
  static void TearDownTestSuite() {
    data_.reset();
    stream_.reset();  // after the memory that is released on it
    expected_.clear();
  }
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    ASSERT_TRUE(kManyQueues);
  }

  static std::string difference(StepEngine& engine, int round) {
    return bit_differences(engine.result(round), expected_[static_cast<size_t>(round % kVersions)], kHidden);
  }

  // Runs rounds in groups that are in flight together. The first that differs, or -1; `what` says how.
  static int first_difference(StepEngine& engine, int rounds, int group, std::string* what) {
    for (int first = 0; first < rounds; first += group) {
      const int end = std::min(rounds, first + group);
      for (int round = first; round < end; ++round) engine.enqueue(round);
      engine.wait();
      for (int round = first; round < end; ++round) {
        *what = difference(engine, round);
        if (!what->empty()) return round;
      }
    }
    return -1;
  }

  static std::optional<device::OwnedStream> stream_;
  static std::unique_ptr<StepData> data_;
  static std::vector<std::vector<uint16_t>> expected_;
};
std::optional<device::OwnedStream> Steps::stream_;
std::unique_ptr<StepData> Steps::data_;
std::vector<std::vector<uint16_t>> Steps::expected_;

TEST_F(Steps, VersionsDifferSoThatALeftoverShows) {
  for (int a = 0; a < kVersions; ++a) {
    for (int b = a + 1; b < kVersions; ++b) {
      const auto& first = expected_[static_cast<size_t>(a)];
      const auto& second = expected_[static_cast<size_t>(b)];
      for (int64_t row = 0; row < 2 * kTokens; ++row) {
        EXPECT_FALSE(std::equal(first.begin() + row * kHidden, first.begin() + (row + 1) * kHidden,
                                second.begin() + row * kHidden))
            << "row " << row << " of versions " << a << " and " << b;
      }
    }
  }
}

TEST_F(Steps, ThousandRoundsOnTwoEngines) {
  RandomDelays delays(1);
  StepEngine engines[2] = {StepEngine(*data_), StepEngine(*data_)};
  for (const StepEngine& engine : engines) engine.name_streams(&delays);
  const Harnessed harnessed(&delays);
  std::string what[2], thrown[2];
  int round[2] = {-1, -1};
  {
    std::vector<std::jthread> threads;
    for (size_t e = 0; e < 2; ++e) {
      threads.emplace_back([&, e] {
        try {
          round[e] = first_difference(engines[e], kRounds, StepEngine::kInFlight, &what[e]);
          engines[e].drain();
        } catch (const std::exception& error) {
          thrown[e] = error.what();
        }
      });
    }
  }
  for (size_t e = 0; e < 2; ++e) {
    EXPECT_EQ(thrown[e], "") << "engine " << e;
    EXPECT_EQ(round[e], -1) << "engine " << e << ": " << what[e];
    EXPECT_EQ(engines[e].status(), 0u) << "engine " << e;
  }
  EXPECT_GT(delays.steps(), 2 * kRounds * 20);
  EXPECT_GT(delays.poisoned_bytes(), 0);
}

// A hand-over that may go missing, and the stream whose steps come late then: the one that it would have waited for.
struct Mutant {
  HandOver site;
  Role slow;
};

class DroppedHandOver : public Steps, public ::testing::WithParamInterface<Mutant> {};

TEST_P(DroppedHandOver, ShowsWithinFiftyRounds) {
  const Mutant mutant = GetParam();
  std::string what;
  {
    // The same delays with every hand-over in place: nothing differs.
    RandomDelays delays(2);
    StepEngine engine(*data_);
    engine.name_streams(&delays);
    delays.slow_only(mutant.slow);
    const Harnessed harnessed(&delays);
    EXPECT_EQ(first_difference(engine, kMutantRounds, StepEngine::kInFlight, &what), -1) << what;
    engine.drain();
  }
  RandomDelays delays(2);
  StepEngine engine(*data_);
  engine.name_streams(&delays);
  delays.slow_only(mutant.slow);
  delays.drop(mutant.site);
  const Harnessed harnessed(&delays);
  const int round = first_difference(engine, kMutantRounds, 1, &what);
  engine.drain();
  EXPECT_NE(round, -1) << device::hand_over_name(mutant.site) << " was left out and nothing differs";
  RecordProperty("round", round);
  std::printf("%s left out: round %d, %s\n", device::hand_over_name(mutant.site), round, what.c_str());
}

const Mutant kMutants[] = {
    {HandOver::kSourceCopied, Role::kCopy},    {HandOver::kStagingFree, Role::kPrepare},
    {HandOver::kStagingReady, Role::kPrepare}, {HandOver::kWeightsPrepared, Role::kPrepare},
    {HandOver::kSharedBegins, Role::kMain},    {HandOver::kSharedEnds, Role::kSide},
};
// step_ranks_test.cpp: kSharedSplit and kSharedAgreed; step_experts_test.cpp: kTokensSent and kRowsReturned.
constexpr size_t kOfRanks = 4;
static_assert(std::size(kMutants) + kOfRanks == static_cast<size_t>(HandOver::kCount),
              "every hand-over has its mutant");

INSTANTIATE_TEST_SUITE_P(All, DroppedHandOver, ::testing::ValuesIn(kMutants),
                         [](const auto& mutant) { return std::string(device::hand_over_name(mutant.param.site)); });

}  // namespace
}  // namespace quadrille::testing
