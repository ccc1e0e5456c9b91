// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <stdexcept>

#include "core/topology.h"

namespace quadrille {
namespace {

constexpr auto kAll = ThreadPool::Start::kAll;

TEST(ThreadPool, RunsEveryPartOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads, kAll);
    EXPECT_EQ(pool.num_threads(), threads);
    EXPECT_EQ(pool.num_active(), threads);
    for (int64_t parts : {0, 1, 2, 7, 1000, 70000, 300001}) {
      std::vector<int> hits(parts, 0);
      pool.run(parts, [&](int64_t part) { ++hits[part]; });
      EXPECT_EQ(hits, std::vector<int>(parts, 1)) << threads << " threads, " << parts << " parts";
    }
  }
}

TEST(ThreadPool, WritesOfAPartAreVisibleToTheCallerAndToTheNextRun) {
  ThreadPool pool(4, kAll);
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 2000; ++round) pool.run(64, [&](int64_t part) { ++values[part]; });
  for (int64_t value : values) EXPECT_EQ(value, 2000);
}

TEST(ThreadPool, ThrowsTheExceptionOfABodyAndStaysUsable) {
  ThreadPool pool(3, kAll);
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
  ThreadPool shared(2, kAll), other(2, kAll);
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

TEST(ThreadPool, LeavesOutThreadsBeyondTheUsableCores) {
  const int cores = usable_cores();
  ThreadPool crowded(cores + 5), all(cores + 5, kAll);
  EXPECT_EQ(crowded.num_threads(), cores + 5);
  EXPECT_EQ(crowded.num_active(), cores);
  EXPECT_EQ(all.num_active(), cores + 5);
  EXPECT_EQ(ThreadPool().num_active(), cores);
  std::vector<int> hits(100, 0);
  crowded.run(100, [&](int64_t part) { ++hits[static_cast<size_t>(part)]; });
  EXPECT_EQ(hits, std::vector<int>(100, 1));
}

// A worker that is held up in the first of its parts leaves the others to the caller; one that is not keeps its own.
TEST(ThreadPool, TakesFromTheEndOfARangeWhoseThreadIsHeldUp) {
  ThreadPool pool(2, kAll);
  std::vector<int> worker(8, -1);
  std::atomic<int> done{0};
  std::atomic<bool> is_held{false};
  pool.run(8, [&](int64_t part, int number) {
    worker[static_cast<size_t>(part)] = number;
    // The first part that the worker runs waits for all others; the caller waits until that has begun.
    if (number == 1 && !is_held.exchange(true)) {
      while (done.load() < 7) std::this_thread::yield();
    }
    while (number == 0 && !is_held.load()) std::this_thread::yield();
    ++done;
  });
  EXPECT_EQ(worker, (std::vector<int>{0, 0, 0, 0, 1, 0, 0, 0}));
}

// Two threads that go through their ranges in step: each has its own parts, from the front, in every run.
TEST(ThreadPool, GivesAThreadTheSamePartsEveryTime) {
  ThreadPool pool(2, kAll);
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> came[4] = {};
    std::vector<int> worker(8, -1);
    pool.run(8, [&](int64_t part, int number) {
      worker[static_cast<size_t>(part)] = number;
      ++came[part % 4];
      while (came[part % 4].load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(worker, (std::vector<int>{0, 0, 0, 0, 1, 1, 1, 1}));
  }
}

TEST(ThreadPool, WorkersAreNumberedAndAloneUnderTheirNumber) {
  ThreadPool pool(7, kAll);
  std::atomic<int> inside[7] = {};
  std::atomic<bool> clash{false};
  for (int round = 0; round < 300; ++round) {
    pool.run(50, [&](int64_t, int worker) {
      if (inside[worker].fetch_add(1) != 0) clash = true;
      inside[worker].fetch_sub(1);
    });
  }
  EXPECT_FALSE(clash);
}

TEST(ThreadPool, ManyShortRunsOfEverySizeOversubscribed) {
  ThreadPool pool(9, kAll);
  int64_t expected = 0;
  std::atomic<int64_t> sum{0};
  for (int64_t round = 0; round < 3000; ++round) {
    const int64_t parts = round % 23;
    pool.run(parts, [&](int64_t part) { sum += part + 1; });
    expected += parts * (parts + 1) / 2;
  }
  EXPECT_EQ(sum, expected);
}

TEST(ThreadPool, EveryPartRunsThoughManyThrow) {
  ThreadPool pool(5, kAll);
  for (int round = 0; round < 100; ++round) {
    std::vector<int> hits(40, 0);
    try {
      pool.run(40, [&](int64_t part) {
        ++hits[static_cast<size_t>(part)];
        if (part % 3 == 0) throw std::out_of_range("part");
      });
      FAIL() << "nothing was thrown";
    } catch (const std::out_of_range&) {
    }
    ASSERT_EQ(hits, std::vector<int>(40, 1));
  }
}

TEST(ThreadPool, OneThreadRunsOnTheCallerInOrder) {
  ThreadPool pool(1);
  std::vector<int64_t> order;
  const auto caller = std::this_thread::get_id();
  pool.run(5, [&](int64_t part, int worker) {
    EXPECT_EQ(worker, 0);
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(part);
  });
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(pool.run(2, [](int64_t) { throw std::runtime_error("part"); }), std::runtime_error);
}

}  // namespace
}  // namespace quadrille
