// SPDX-License-Identifier: Apache-2.0
// Lets other Python threads run while a native call computes or waits, and keeps a daemon thread that comes back from
// one out of an interpreter that is ending. Every binding that computes uses it instead of
// nanobind::gil_scoped_release.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <thread>

#include <unistd.h>

namespace quadrille::python {

// Releases the interpreter lock for its life. CPython before 3.14 ends a daemon thread that asks for the lock of an
// ending interpreter by unwinding its stack, and that unwinding terminates the process at the first destructor. So a
// thread that comes back after exit began (guard_exit()) sleeps until the process is gone; nobody joins it.
class ReleasedGil {
 public:
  ReleasedGil() { release(); }
  ~ReleasedGil() { acquire(); }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

  // For a callback on the same thread: the lock for a while, then release() again.
  void acquire() {
    returning_.fetch_add(1);
    if (exiting_.load() && std::this_thread::get_id() != exit_thread_) {
      returning_.fetch_sub(1);
      while (true) ::pause();
    }
    PyEval_RestoreThread(state_);
    returning_.fetch_sub(1);
  }
  void release() { state_ = PyEval_SaveThread(); }

  // From Python's atexit, when only daemon threads are left besides the calling one. Returns when no thread is between
  // its look at the flag and the lock.
  static void begin_exit() {
    exit_thread_ = std::this_thread::get_id();
    exiting_.store(true);
    PyThreadState* state = PyEval_SaveThread();
    while (returning_.load() != 0) std::this_thread::yield();
    PyEval_RestoreThread(state);
  }

 private:
  PyThreadState* state_ = nullptr;
  inline static std::atomic<int> returning_{0};
  inline static std::atomic<bool> exiting_{false};
  inline static std::thread::id exit_thread_;
};

// Once, from the module's initialisation.
inline void guard_exit() {
  nanobind::module_::import_("atexit").attr("register")(nanobind::cpp_function(&ReleasedGil::begin_exit));
}

}  // namespace quadrille::python
