// SPDX-License-Identifier: Apache-2.0
// A pool of threads that is handed in wherever work is parallel: no globals, two pools fit in one process.
// Each thread owns the same contiguous range of a run's parts every time, so that it reads one stream of bytes and
// finds in its caches and on its NUMA node what it touched before; who is done takes parts from the end of the fullest
// other range, so that a thread which another process keeps from its core holds nobody up. Waiting threads spin for a
// moment, then park. Measured in docs/threads.md.
#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace quadrille {

class ThreadPool {
 public:
  // Threads beyond the usable cores would take time from those that compute, and wait for each other through the
  // scheduler: kUsableCores leaves them out, though work is still cut for as many as were asked for. kAll starts them,
  // for tests.
  enum class Start { kUsableCores, kAll };
  // `num_threads` >= 1 counts the caller's thread: a pool of one starts no thread. 0 means one a usable core.
  // The threads inherit the affinity and the memory policy of the thread that makes the pool (core/numa.h).
  explicit ThreadPool(int num_threads = 0, Start start = Start::kUsableCores);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  // Those that run, the caller among them: at most num_threads().
  int num_active() const { return static_cast<int>(ranges_.size()); }
  // To bind thread `worker`, below num_active(), to cores; worker 0 is the calling thread.
  pthread_t thread_handle(int worker);

  using RawBody = void (*)(void* context, int64_t part, int worker);

  // Runs body(context, part, worker) for part = 0..parts-1, each once; returns when all are done. `worker` is the
  // thread that runs it, 0..num_active()-1, the caller is 0; no two run at once with the same number, so it may choose
  // scratch memory. Worker i owns the parts from parts * i / n up to parts * (i + 1) / n, n = min(parts,
  // num_active()), but any worker may run a part: a body's result must depend on `part` alone. The first exception of
  // a body is thrown here. Not reentrant: one run() at a time a pool (a second caller waits); a body must not call
  // run() of its own pool.
  void run_raw(int64_t parts, RawBody body, void* context);

  // run(parts, [&](int64_t part) {...}) or run(parts, [&](int64_t part, int worker) {...})
  template <typename Body>
  void run(int64_t parts, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    run_raw(
        parts,
        [](void* context, int64_t part, int worker) {
          if constexpr (std::is_invocable_v<Callable&, int64_t, int>) {
            (*static_cast<Callable*>(context))(part, worker);
          } else {
            (*static_cast<Callable*>(context))(part);
          }
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  // What has been claimed of one range: number of the run << 32 | chunks from its front << 16 | chunks from its end. A
  // word of an older run means that nothing is claimed: so a run begins without a store to the line of every thread.
  struct alignas(64) Range {
    std::atomic<uint64_t> claimed{0};
  };
  struct alignas(64) Worker {
    std::mutex mutex;
    std::condition_variable_any wake;
    std::atomic<bool> is_parked{false};
  };

  ThreadPool(int num_threads, Start start, int cores);
  void worker_loop(const std::stop_token& stop, int number);
  bool may_join(uint64_t seen) const;
  bool join(uint64_t* seen);
  void leave();
  void work(int worker);
  void run_chunk(int64_t chunk, int worker);
  int64_t claim_own(int range);
  int64_t steal(int thief);
  int fullest_range(int thief) const;
  int64_t claim(int range, bool from_front);
  int64_t range_begin(int64_t range) const { return chunks_ * range / num_ranges_; }
  int64_t unclaimed(int64_t range, uint64_t word) const;
  void lay_out(int64_t parts);
  void open_run();
  void close_run();

  int num_threads_;
  int spins_;
  std::mutex caller_mutex_;  // one run at a time
  std::mutex left_mutex_;    // pairs with left_
  std::condition_variable left_;
  // Number of the run << 32 | kOpen | workers that take part. A worker enters an open run by adding itself here, so the
  // fields of the run are read only by those that the caller waits for.
  alignas(64) std::atomic<uint64_t> state_{0};
  std::atomic<int> parked_{0};  // workers
  std::atomic<bool> caller_parked_{false};
  // The run. A chunk, what is claimed at once, is one part but where there are very many.
  alignas(64) uint64_t run_ = 0;
  int64_t parts_ = 0, chunks_ = 0, parts_a_chunk_ = 1, num_ranges_ = 1;
  RawBody body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<int64_t> open_ranges_{0};  // with something unclaimed
  std::mutex exception_mutex_;
  std::exception_ptr exception_;
  std::vector<Range> ranges_;
  std::vector<Worker> workers_;  // workers_[i] is thread i + 1
  std::vector<std::jthread> threads_;
};

}  // namespace quadrille
