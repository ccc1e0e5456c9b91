// SPDX-License-Identifier: Apache-2.0
// A pool of threads that is handed in wherever work is parallel: no globals, two pools fit in one process.
// Waiting threads spin for a moment, then park, so that decode steps pay 1-2 us and idle pools pay nothing.
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
  void work();

  std::vector<std::jthread> workers_;
  std::mutex caller_mutex_;  // one run at a time
  std::mutex mutex_;         // guards parking, pairs with wake_
  std::condition_variable_any wake_;
  std::atomic<uint64_t> generation_{0};  // goes up by one a run; workers wait for a change
  std::atomic<int64_t> next_part_{0};
  std::atomic<int> busy_workers_{0};  // workers that have not finished this generation
  int64_t parts_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::mutex exception_mutex_;
  std::exception_ptr exception_;
};

}  // namespace quadrille
