// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <algorithm>

#include "core/topology.h"

namespace quadrille {
namespace {

// About 20 us of pauses: longer than the gap between two kernels of a decode step, shorter than a scheduler slice.
constexpr int kSpins = 2000;
// Where the pool has more threads than cores, waiting takes time from those that work.
constexpr int kCrowdedSpins = 20;

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kTakers = kOpen - 1;

constexpr uint64_t run_of(uint64_t state) {
  return state >> 32;
}

void pause_cpu() {
  __builtin_ia32_pause();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  const int count = num_threads > 0 ? num_threads : usable_cores();
  spins_ = count <= usable_cores() ? kSpins : kCrowdedSpins;
  for (int i = 1; i < count; ++i) workers_.emplace_back([this](std::stop_token stop) { worker_loop(stop); });
}

ThreadPool::~ThreadPool() {
  for (auto& worker : workers_) worker.request_stop();
  { std::lock_guard lock(mutex_); }
  wake_.notify_all();
}

void ThreadPool::work() {
  for (;;) {
    const int64_t part = next_part_.fetch_add(1, std::memory_order_relaxed);
    if (part >= parts_) return;
    try {
      body_(context_, part);
    } catch (...) {
      std::lock_guard lock(exception_mutex_);
      if (!exception_) exception_ = std::current_exception();
    }
  }
}

bool ThreadPool::may_join(uint64_t seen) const {
  // seq_cst: pairs with open_run(), which looks for parked workers after it opened.
  const uint64_t state = state_.load(std::memory_order_seq_cst);
  return (state & kOpen) != 0 && run_of(state) != seen;
}

// Enters the open run unless it is `*seen`, which a worker has been in already.
bool ThreadPool::join(uint64_t* seen) {
  uint64_t state = state_.load(std::memory_order_relaxed);
  while ((state & kOpen) != 0 && run_of(state) != *seen) {
    // Acquire pairs with the store in open_run: the fields of this run are visible once it is joined.
    if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire, std::memory_order_relaxed)) continue;
    *seen = run_of(state);
    return true;
  }
  return false;
}

void ThreadPool::leave() {
  // Release: what this worker wrote is visible to the caller, which reads the count in close_run. seq_cst: either the
  // caller sees the count, or this worker sees that the caller parks.
  const uint64_t left = state_.fetch_sub(1, std::memory_order_seq_cst) - 1;
  if ((left & (kOpen | kTakers)) != 0 || !caller_parked_.load(std::memory_order_seq_cst)) return;
  { std::lock_guard lock(mutex_); }
  left_.notify_one();
}

void ThreadPool::worker_loop(std::stop_token stop) {
  uint64_t seen = 0;
  while (!stop.stop_requested()) {
    for (int i = 0; i < spins_ && !may_join(seen); ++i) pause_cpu();
    if (!may_join(seen)) {
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, stop, [&] { return may_join(seen); });
      parked_.fetch_sub(1, std::memory_order_seq_cst);
      if (stop.stop_requested()) return;
    }
    if (!join(&seen)) continue;
    work();
    leave();
  }
}

void ThreadPool::open_run() {
  // Nobody else writes the state of a closed run.
  const uint64_t run = run_of(state_.load(std::memory_order_relaxed)) + 1;
  state_.store(run << 32 | kOpen, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) == 0) return;
  { std::lock_guard lock(mutex_); }
  wake_.notify_all();
}

// Keeps workers out that have not come yet, and waits for the others.
void ThreadPool::close_run() {
  state_.fetch_and(~kOpen, std::memory_order_seq_cst);
  // Acquire pairs with the release in leave().
  const auto is_alone = [&] { return (state_.load(std::memory_order_seq_cst) & kTakers) == 0; };
  for (int i = 0; i < spins_; ++i) {
    if (is_alone()) return;
    pause_cpu();
  }
  std::unique_lock lock(mutex_);
  caller_parked_.store(true, std::memory_order_seq_cst);
  left_.wait(lock, is_alone);
  caller_parked_.store(false, std::memory_order_relaxed);
}

void ThreadPool::run_raw(int64_t parts, void (*body)(void*, int64_t), void* context) {
  if (parts <= 0) return;
  std::lock_guard caller(caller_mutex_);
  parts_ = parts;
  body_ = body;
  context_ = context;
  exception_ = nullptr;
  next_part_.store(0, std::memory_order_relaxed);
  const bool is_shared = !workers_.empty() && parts > 1;
  if (is_shared) open_run();
  work();
  if (is_shared) close_run();
  if (exception_) std::rethrow_exception(exception_);
}

}  // namespace quadrille
