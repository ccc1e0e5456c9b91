// SPDX-License-Identifier: Apache-2.0
// A pool of threads that is handed in wherever work is parallel: no globals, two pools fit in one process.
// Waiting threads spin for a moment, then park, so that decode steps pay 1-2 us and idle pools pay nothing. A run waits
// for the workers that took part alone: one that another process keeps from its core holds nobody up.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace quadrille {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller's thread: a pool of one starts no thread. 0 means one a usable core.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Runs body(context, part) for part = 0..parts-1, each once, on any thread; returns when all are done. The order and
  // the thread are free, so a body's result must depend on `part` alone. The first exception of a body is thrown here.
  // Not reentrant: one run() at a time a pool (a second caller waits); a body must not call run() of its own pool.
  void run_raw(int64_t parts, void (*body)(void* context, int64_t part), void* context);

  // run(parts, [&](int64_t part) {...})
  template <typename Body>
  void run(int64_t parts, Body&& body) {
    run_raw(
        parts, [](void* context, int64_t part) { (*static_cast<std::remove_reference_t<Body>*>(context))(part); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  void worker_loop(std::stop_token stop);
  bool may_join(uint64_t seen) const;
  bool join(uint64_t* seen);
  void leave();
  void work();
  void open_run();
  void close_run();

  std::vector<std::jthread> workers_;
  int spins_;
  std::mutex caller_mutex_;  // one run at a time
  std::mutex mutex_;         // guards parking, pairs with wake_ and left_
  std::condition_variable_any wake_;
  std::condition_variable left_;
  // Number of the run << 32 | kOpen | workers that take part. A worker enters an open run by adding itself here, so the
  // fields below are read only by those that the caller waits for.
  std::atomic<uint64_t> state_{0};
  std::atomic<int> parked_{0};  // workers
  std::atomic<bool> caller_parked_{false};
  std::atomic<int64_t> next_part_{0};
  int64_t parts_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::mutex exception_mutex_;
  std::exception_ptr exception_;
};

}  // namespace quadrille
