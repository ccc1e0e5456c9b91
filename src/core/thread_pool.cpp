// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <algorithm>

#include "core/topology.h"

namespace quadrille {
namespace {

// About 20 us of pauses: longer than the gap between two kernels of a decode step, shorter than a scheduler slice.
constexpr int kSpinRounds = 2000;

void pause_cpu() {
  __builtin_ia32_pause();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  const int count = num_threads > 0 ? num_threads : usable_cores();
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

void ThreadPool::worker_loop(std::stop_token stop) {
  uint64_t seen = 0;
  while (!stop.stop_requested()) {
    // Acquire pairs with the release in run_raw: the fields of this run are visible once the generation is.
    for (int i = 0; i < kSpinRounds && generation_.load(std::memory_order_acquire) == seen; ++i) pause_cpu();
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, stop, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      if (stop.stop_requested()) return;
    }
    seen = generation_.load(std::memory_order_acquire);
    work();
    // Release pairs with the acquire in run_raw: what this worker wrote is visible to the caller.
    busy_workers_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::run_raw(int64_t parts, void (*body)(void*, int64_t), void* context) {
  if (parts <= 0) return;
  std::lock_guard caller(caller_mutex_);
  parts_ = parts;
  body_ = body;
  context_ = context;
  exception_ = nullptr;
  next_part_.store(0, std::memory_order_relaxed);
  if (!workers_.empty() && parts > 1) {
    busy_workers_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  work();
  for (int spins = 0; busy_workers_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpinRounds)
      pause_cpu();
    else
      std::this_thread::yield();
  }
  if (exception_) std::rethrow_exception(exception_);
}

}  // namespace quadrille
