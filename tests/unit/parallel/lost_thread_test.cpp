// SPDX-License-Identifier: Apache-2.0
// A rank thread that fails in any phase, while the others wait in collectives of every kind.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "parallel/thread_group.h"

namespace quadrille::parallel {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

enum class How { kError, kThrow, kForget };

// Rank `lost` fails before its collective number `at`, the others go on until they are told.
Status run_until_lost(int ranks, int lost, Phase phase, How how, size_t floats, std::vector<Status>& ends,
                      LossState::Callback on_lost = {}) {
  ends.resize(static_cast<size_t>(ranks));
  return run_rank_threads(
      ranks,
      [&](Communicator& c) -> Status {
        c.set_phase(phase);
        std::vector<float> data(floats, 1.0f);
        for (int step = 0;; ++step) {
          if (c.rank() == lost && step == 7) {
            std::this_thread::sleep_for(milliseconds(20));  // the others are parked by now
            if (how == How::kThrow) throw std::runtime_error("no memory left on purpose");
            if (how == How::kError) return make_error(ErrorCode::kIo, "the disk went away on purpose");
            return {};
          }
          if (Status sum = c.all_reduce_sum(data); !sum) {
            ends[static_cast<size_t>(c.rank())] = sum;
            return sum;
          }
        }
      },
      on_lost);
}

TEST(LostThread, EndsEveryOtherRankInEachPhase) {
  for (const Phase phase : {Phase::kStart, Phase::kLoad, Phase::kPrefill, Phase::kDecode}) {
    for (const How how : {How::kError, How::kThrow}) {
      for (const size_t floats : {size_t{1}, size_t{100'000}}) {
        SCOPED_TRACE(fmt::format("{} {} {}", phase_name(phase), static_cast<int>(how), floats));
        std::vector<Status> ends;
        const auto begin = Clock::now();
        const Status done = run_until_lost(4, 2, phase, how, floats, ends);
        EXPECT_LT(Clock::now() - begin, std::chrono::seconds(5));
        ASSERT_FALSE(done);
        EXPECT_TRUE(done.error().message.starts_with(fmt::format("rank 2 in phase {}: ", phase_name(phase))))
            << done.error().message;
        for (const int r : {0, 1, 3}) {
          const Status& end = ends[static_cast<size_t>(r)];
          ASSERT_FALSE(end);
          EXPECT_EQ(end.error().code, ErrorCode::kLostRank);
          const std::string line = fmt::format("rank 2 was lost in phase {}: ", phase_name(phase));
          EXPECT_TRUE(end.error().message.starts_with(line)) << end.error().message;
        }
      }
    }
  }
}

// A rank that returns without an error while the others still call is in leave(): out of step, not a hang.
TEST(LostThread, EndingTooEarlyIsSaid) {
  std::vector<Status> ends;
  const Status done = run_until_lost(3, 1, Phase::kDecode, How::kForget, 10, ends);
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("out of step"), std::string::npos) << done.error().message;
}

TEST(LostThread, CallsBackOnce) {
  std::atomic<int> calls{0};
  std::vector<Status> ends;
  LostRank seen;
  const Status done = run_until_lost(4, 3, Phase::kLoad, How::kError, 10, ends, [&](const LostRank& lost) {
    ++calls;
    seen = lost;
  });
  EXPECT_FALSE(done);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(seen.rank, 3);
  EXPECT_EQ(seen.phase, Phase::kLoad);
  EXPECT_EQ(seen.text(), "rank 3 was lost in phase load: the disk went away on purpose");
}

TEST(LostThread, ReachesThePartsOfASplit) {
  std::atomic<int> told{0};
  const Status done = run_rank_threads(4, [&](Communicator& all) -> Status {
    QD_TRY(auto pair, all.split(all.rank() / 2));
    if (all.rank() == 0) {
      std::this_thread::sleep_for(milliseconds(100));  // the others have left split()
      return make_error(ErrorCode::kIo, "on purpose");
    }
    // Ranks 2 and 3 wait for nobody of the other pair, and still learn of it.
    for (float x = 0;;) {
      Status sum = pair->all_reduce_sum(std::span(&x, 1));
      if (sum) continue;
      told += sum.error().message.starts_with("rank 0 was lost") ? 1 : 0;
      return sum;
    }
  });
  EXPECT_FALSE(done);
  EXPECT_EQ(told, 3);
}

TEST(LostThread, ACommunicatorThatIsDroppedIsALoss) {
  auto all = thread_communicators(2);
  all[1].reset();
  const Status barrier = all[0]->barrier();
  ASSERT_FALSE(barrier);
  EXPECT_NE(
      barrier.error().message.find("rank 1 was lost in phase start: its communicator was destroyed before leave()"),
      std::string::npos)
      << barrier.error().message;
}

// Buffers of a lost rank go at once: nobody may still read them (the address checks of a sanitizer build see it).
TEST(LostThread, BuffersMayGoAfterTheError) {
  for (int round = 0; round < 30; ++round) {
    const Status done = run_rank_threads(4, [&](Communicator& c) -> Status {
      for (int step = 0;; ++step) {
        std::vector<float> data(60'000, 1.0f);
        if (c.rank() == round % 4 && step == 3) return make_error(ErrorCode::kIo, "on purpose");
        QD_TRY_STATUS(c.all_reduce_sum(data));
      }
    });
    EXPECT_FALSE(done);
  }
}

}  // namespace
}  // namespace quadrille::parallel
