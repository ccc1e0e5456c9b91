// SPDX-License-Identifier: Apache-2.0
#include "parallel/thread_meeting.h"

#include <algorithm>
#include <thread>

#include "core/topology.h"

namespace quadrille::parallel {
namespace {

// About 50 us of waiting where every rank has a core; where they share cores, waiting takes time from the others.
constexpr int kSpins = 2000;
constexpr int kCrowdedSpins = 20;
constexpr int kYields = 20;

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadMeeting::ThreadMeeting(int size, LossState& loss)
    : loss_(loss), ranks_(static_cast<size_t>(size)), spins_(size <= usable_cores() ? kSpins : kCrowdedSpins) {}

bool ThreadMeeting::wait_for(const Rank& rank, uint64_t goal) {
  const auto here = [&] { return rank.arrived.load(std::memory_order_seq_cst) >= goal; };
  for (int i = 0; i < spins_; ++i) {
    if (here()) return true;
    pause_core();
  }
  for (int i = 0; i < kYields; ++i) {
    if (here()) return true;
    std::this_thread::yield();
  }
  std::unique_lock lock(mutex_);
  // Either this rank sees the arrival, or the arriving one sees parked_ > 0 and takes the lock to wake (both seq_cst).
  parked_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return here() || loss_.any(); });
  parked_.fetch_sub(1, std::memory_order_seq_cst);
  return here();
}

bool ThreadMeeting::meet(int own) {
  Rank& mine = ranks_[static_cast<size_t>(own)];
  const uint64_t goal = mine.arrived.load(std::memory_order_relaxed) + 1;
  mine.arrived.store(goal, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) > 0) wake();
  for (const Rank& rank : ranks_) {
    if (!wait_for(rank, goal)) return false;
  }
  return true;
}

bool ThreadMeeting::begin_reading(int own) {
  // seq_cst on both flags: a rank that leaves after a loss sees this flag, or this rank sees the loss.
  ranks_[static_cast<size_t>(own)].reading.store(true, std::memory_order_seq_cst);
  if (!loss_.any()) return true;
  end_reading(own);
  return false;
}

void ThreadMeeting::end_reading(int own) {
  ranks_[static_cast<size_t>(own)].reading.store(false, std::memory_order_seq_cst);
}

void ThreadMeeting::wait_for_readers() {
  for (const Rank& rank : ranks_) {
    while (rank.reading.load(std::memory_order_seq_cst)) std::this_thread::yield();
  }
}

void ThreadMeeting::wake() {
  { const std::scoped_lock lock(mutex_); }
  wake_.notify_all();
}

}  // namespace quadrille::parallel
