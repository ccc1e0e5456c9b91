// SPDX-License-Identifier: Apache-2.0
#include "parallel/thread_meeting.h"

#include <algorithm>
#include <thread>

#include "core/topology.h"

namespace quadrille::parallel {
namespace {

// About 50 us of waiting where every rank has a core; where they share cores, waiting takes time from the others. Then
// a rank parks: giving up its slice instead would hand the core to whatever else runs on the machine, for a whole
// slice.
constexpr int kSpins = 2000;
constexpr int kCrowdedSpins = 20;

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadMeeting::ThreadMeeting(int size, LossState& loss)
    : loss_(loss), ranks_(static_cast<size_t>(size)), spins_(size <= usable_cores() ? kSpins : kCrowdedSpins) {}

bool ThreadMeeting::all_came(uint64_t goal) const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [&](const Rank& rank) { return rank.arrived.load(std::memory_order_seq_cst) >= goal; });
}

bool ThreadMeeting::meet(int own) {
  Rank& mine = ranks_[static_cast<size_t>(own)];
  const uint64_t goal = mine.arrived.load(std::memory_order_relaxed) + 1;
  mine.arrived.store(goal, std::memory_order_seq_cst);
  if (all_came(goal)) {
    // The last one wakes; nobody is woken before there is something to see.
    if (parked_.load(std::memory_order_seq_cst) > 0) wake();
    return true;
  }
  for (int i = 0; i < spins_; ++i) {
    if (all_came(goal)) return true;
    pause_core();
  }
  std::unique_lock lock(mutex_);
  // Either this rank sees the last arrival, or the one that arrives last sees parked_ > 0 and takes the lock to wake
  // (all seq_cst).
  parked_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return all_came(goal) || loss_.any(); });
  parked_.fetch_sub(1, std::memory_order_seq_cst);
  return all_came(goal);
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
