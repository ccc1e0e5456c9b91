// SPDX-License-Identifier: Apache-2.0
// Work on a thread of its own: who is told, who may stop it, what becomes of exceptions, where signals go.
#include "session/watched_work.h"

#include <gmock/gmock.h>
#include <pthread.h>
#include <signal.h>

#include <stdexcept>
#include <thread>

namespace quadrille::session {
namespace {

using ::testing::HasSubstr;

TEST(WatchedWork, TellsTheWaitingThread) {
  const auto here = std::this_thread::get_id();
  int calls = 0;
  uint64_t last = 0;
  const Watch watch = [&](const std::string& what, uint64_t done, uint64_t total) {
    EXPECT_EQ(std::this_thread::get_id(), here);
    if (calls++ > 0) {
      EXPECT_EQ(what, "part");
      EXPECT_EQ(total, 9u);
      EXPECT_GE(done, last);
    }
    last = done;
    return true;
  };
  const Status ended = run_watched(watch, [&](WatchedWork& work) -> Status {
    EXPECT_NE(std::this_thread::get_id(), here);
    for (uint64_t i = 1; i <= 9; ++i) {
      work.update("part", i, 9);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return {};
  });
  EXPECT_TRUE(ended.ok());
  EXPECT_GE(calls, 3) << "at once, in between, and at the end";
  EXPECT_EQ(last, 9u);
}

TEST(WatchedWork, EndsWhenTheWatchSaysSo) {
  const Status ended = run_watched([](const std::string&, uint64_t, uint64_t) { return false; },
                                   [](WatchedWork& work) -> Status {
                                     while (!*work.cancelled()) std::this_thread::yield();
                                     return make_error(ErrorCode::kCancelled, "stopped");
                                   });
  ASSERT_FALSE(ended);
  EXPECT_EQ(ended.error().code, ErrorCode::kCancelled);
}

TEST(WatchedWork, ExceptionsAreErrors) {
  const Status bug = run_watched({}, [](WatchedWork&) -> Status { throw std::logic_error("planted"); });
  ASSERT_FALSE(bug);
  EXPECT_THAT(bug.error().message, HasSubstr("planted"));
  const Status memory = run_watched({}, [](WatchedWork&) -> Status { throw std::bad_alloc(); });
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code, ErrorCode::kCapacity);
}

TEST(WatchedWork, SignalsStayWithTheProgram) {
  const auto blocks_interrupt = [] {
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
    return sigismember(&blocked, SIGINT) == 1;
  };
  ASSERT_FALSE(blocks_interrupt());
  bool there = false;
  EXPECT_TRUE(run_watched({}, [&](WatchedWork&) -> Status {
    there = blocks_interrupt();
    return {};
  }));
  EXPECT_TRUE(there);
  EXPECT_FALSE(blocks_interrupt()) << "the caller's mask is as it was";
}

}  // namespace
}  // namespace quadrille::session
