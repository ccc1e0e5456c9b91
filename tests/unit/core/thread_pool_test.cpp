// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <numeric>
#include <stdexcept>

namespace quadrille {
namespace {

TEST(ThreadPool, RunsEveryPartOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.num_threads(), threads);
    for (int64_t parts : {0, 1, 2, 7, 1000}) {
      std::vector<int> hits(parts, 0);
      pool.run(parts, [&](int64_t part) { ++hits[part]; });
      EXPECT_EQ(hits, std::vector<int>(parts, 1)) << threads << " threads, " << parts << " parts";
    }
  }
}

TEST(ThreadPool, WritesOfAPartAreVisibleToTheCallerAndToTheNextRun) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 2000; ++round) pool.run(64, [&](int64_t part) { ++values[part]; });
  for (int64_t value : values) EXPECT_EQ(value, 2000);
}

TEST(ThreadPool, ThrowsTheExceptionOfABodyAndStaysUsable) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.run(100,
                        [](int64_t part) {
                          if (part == 57) throw std::runtime_error("part 57");
                        }),
               std::runtime_error);
  std::atomic<int> count{0};
  pool.run(100, [&](int64_t) { ++count; });
  EXPECT_EQ(count, 100);
}

TEST(ThreadPool, TwoPoolsAndTwoCallersDoNotMeet) {
  ThreadPool shared(2), other(2);
  std::atomic<int64_t> sum{0};
  auto caller = [&](ThreadPool& pool) {
    for (int round = 0; round < 200; ++round) pool.run(10, [&](int64_t part) { sum += part; });
  };
  std::thread first([&] { caller(shared); }), second([&] { caller(shared); }), third([&] { caller(other); });
  first.join();
  second.join();
  third.join();
  EXPECT_EQ(sum, 3 * 200 * 45);
}

TEST(ThreadPool, ParksAndWakes) {
  ThreadPool pool(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> count{0};
    pool.run(4, [&](int64_t) { ++count; });
    EXPECT_EQ(count, 4);
  }
}

}  // namespace
}  // namespace quadrille
