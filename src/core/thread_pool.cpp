// SPDX-License-Identifier: Apache-2.0
#include "core/thread_pool.h"

#include <algorithm>
#include <chrono>

#include "core/topology.h"

namespace quadrille {
namespace {

// Longer than the gap between two kernels of a decode step, far shorter than a scheduler slice.
constexpr std::chrono::nanoseconds kSpinTime{10000};
// Where more threads run than there are cores, waiting takes time from those that work.
constexpr int kCrowdedSpins = 20;

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kTakers = kOpen - 1;

constexpr uint64_t kFrontOne = uint64_t{1} << 16;
constexpr uint64_t kClaims = 0xffff;
constexpr int64_t kMostChunks = 0x8000;  // a range: both counts fit their 16 bits

constexpr uint64_t run_of(uint64_t word) {
  return word >> 32;
}

void pause_cpu() {
  __builtin_ia32_pause();
}

// Pauses in kSpinTime: one takes 10 ns on some CPUs and 50 on others. The shortest of a few looks, since this thread
// may lose its core in one.
int spins_of_this_cpu() {
  using Clock = std::chrono::steady_clock;
  constexpr int kPauses = 64;
  auto shortest = Clock::duration::max();
  for (int look = 0; look < 4; ++look) {
    const auto begin = Clock::now();
    for (int i = 0; i < kPauses; ++i) pause_cpu();
    shortest = std::min(shortest, Clock::now() - begin);
  }
  const auto each = std::max<int64_t>(1, std::chrono::nanoseconds(shortest).count() / kPauses);
  return static_cast<int>(std::clamp<int64_t>(kSpinTime.count() / each, 100, 20000));
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, Start start) : ThreadPool(num_threads, start, usable_cores()) {}

ThreadPool::ThreadPool(int num_threads, Start start, int cores)
    : num_threads_(num_threads > 0 ? num_threads : cores),
      ranges_(static_cast<size_t>(start == Start::kAll ? num_threads_ : std::min(num_threads_, cores))),
      workers_(ranges_.size() - 1) {
  spins_ = num_active() <= cores ? spins_of_this_cpu() : kCrowdedSpins;
  for (int i = 1; i < num_active(); ++i) {
    threads_.emplace_back([this, i](const std::stop_token& stop) { worker_loop(stop, i); });
  }
}

ThreadPool::~ThreadPool() {
  for (auto& thread : threads_) thread.request_stop();
  threads_.clear();
}

pthread_t ThreadPool::thread_handle(int worker) {
  return worker == 0 ? ::pthread_self() : threads_[static_cast<size_t>(worker - 1)].native_handle();
}

// Chunks of range `range` that nobody has, by its word.
int64_t ThreadPool::unclaimed(int64_t range, uint64_t word) const {
  const int64_t size = range_begin(range + 1) - range_begin(range);
  if (run_of(word) != run_) return size;
  return size - static_cast<int64_t>(word >> 16 & kClaims) - static_cast<int64_t>(word & kClaims);
}

// The number of a chunk, or -1 where the range is empty. Relaxed: what the bodies read and write is ordered by join(),
// leave() and close_run(); here it matters alone that each chunk has one taker.
int64_t ThreadPool::claim(int range, bool from_front) {
  std::atomic<uint64_t>& claimed = ranges_[static_cast<size_t>(range)].claimed;
  uint64_t word = claimed.load(std::memory_order_relaxed);
  for (;;) {
    const int64_t left = unclaimed(range, word);
    if (left == 0) return -1;
    const uint64_t known = run_of(word) == run_ ? word : run_ << 32;
    if (!claimed.compare_exchange_weak(word, known + (from_front ? kFrontOne : 1), std::memory_order_relaxed)) continue;
    if (left == 1) open_ranges_.fetch_sub(1, std::memory_order_relaxed);
    if (from_front) return range_begin(range) + static_cast<int64_t>(known >> 16 & kClaims);
    return range_begin(range + 1) - 1 - static_cast<int64_t>(known & kClaims);
  }
}

int64_t ThreadPool::claim_own(int range) {
  return range < num_ranges_ ? claim(range, true) : -1;
}

// The one with the most left, the next neighbour among equals; -1 where all are empty.
int ThreadPool::fullest_range(int thief) const {
  int64_t most = 0;
  int fullest = -1;
  const auto count = static_cast<int>(num_ranges_);
  for (int i = 1; i <= count; ++i) {
    const int range = (thief + i) % count;
    const int64_t left = unclaimed(range, ranges_[static_cast<size_t>(range)].claimed.load(std::memory_order_relaxed));
    if (left > most) most = left, fullest = range;
  }
  return fullest;
}

int64_t ThreadPool::steal(int thief) {
  while (open_ranges_.load(std::memory_order_relaxed) > 0) {
    const int range = fullest_range(thief);
    if (range < 0) return -1;
    if (const int64_t chunk = claim(range, false); chunk >= 0) return chunk;
  }
  return -1;
}

void ThreadPool::run_chunk(int64_t chunk, int worker) {
  const int64_t end = std::min(parts_, (chunk + 1) * parts_a_chunk_);
  for (int64_t part = chunk * parts_a_chunk_; part < end; ++part) {
    try {
      body_(context_, part, worker);
    } catch (...) {
      std::lock_guard lock(exception_mutex_);
      if (!exception_) exception_ = std::current_exception();
    }
  }
}

void ThreadPool::work(int worker) {
  for (int64_t chunk = claim_own(worker); chunk >= 0; chunk = claim_own(worker)) run_chunk(chunk, worker);
  for (int64_t chunk = steal(worker); chunk >= 0; chunk = steal(worker)) run_chunk(chunk, worker);
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
  { std::lock_guard lock(left_mutex_); }
  left_.notify_one();
}

void ThreadPool::worker_loop(const std::stop_token& stop, int number) {
  Worker& own = workers_[static_cast<size_t>(number - 1)];
  uint64_t seen = 0;
  while (!stop.stop_requested()) {
    for (int i = 0; i < spins_ && !may_join(seen); ++i) pause_cpu();
    if (!may_join(seen)) {
      std::unique_lock lock(own.mutex);
      own.is_parked.store(true, std::memory_order_seq_cst);
      parked_.fetch_add(1, std::memory_order_seq_cst);
      own.wake.wait(lock, stop, [&] { return may_join(seen); });
      parked_.fetch_sub(1, std::memory_order_seq_cst);
      own.is_parked.store(false, std::memory_order_seq_cst);
      if (stop.stop_requested()) return;
    }
    if (!join(&seen)) continue;
    work(number);
    leave();
  }
}

// Wakes the parked workers among those that own a range: the others would find nothing but what they take from them.
void ThreadPool::open_run() {
  // Nobody else writes the state of a closed run.
  state_.store(run_ << 32 | kOpen, std::memory_order_seq_cst);
  if (parked_.load(std::memory_order_seq_cst) == 0) return;
  for (int64_t i = 1; i < num_ranges_; ++i) {
    Worker& worker = workers_[static_cast<size_t>(i - 1)];
    if (!worker.is_parked.load(std::memory_order_seq_cst)) continue;
    { std::lock_guard lock(worker.mutex); }
    worker.wake.notify_one();
  }
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
  std::unique_lock lock(left_mutex_);
  caller_parked_.store(true, std::memory_order_seq_cst);
  left_.wait(lock, is_alone);
  caller_parked_.store(false, std::memory_order_relaxed);
}

// The fields of the next run.
void ThreadPool::lay_out(int64_t parts) {
  run_ = (run_ + 1) & 0xffffffff;
  if (run_ == 0) {
    // A range that was left alone since that number was used before would look claimed.
    for (Range& range : ranges_) range.claimed.store(0, std::memory_order_relaxed);
    run_ = 1;
  }
  const int64_t most = kMostChunks * num_active();
  parts_ = parts;
  parts_a_chunk_ = (parts - 1) / most + 1;
  chunks_ = (parts - 1) / parts_a_chunk_ + 1;
  num_ranges_ = std::min<int64_t>(chunks_, num_active());
  open_ranges_.store(num_ranges_, std::memory_order_relaxed);
}

void ThreadPool::run_raw(int64_t parts, RawBody body, void* context) {
  if (parts <= 0) return;
  std::lock_guard caller(caller_mutex_);
  body_ = body;
  context_ = context;
  exception_ = nullptr;
  lay_out(parts);
  if (num_ranges_ > 1) {
    open_run();
    work(0);
    close_run();
  } else {
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) run_chunk(chunk, 0);
  }
  if (exception_) std::rethrow_exception(exception_);
}

}  // namespace quadrille
