// SPDX-License-Identifier: Apache-2.0
// Lets other Python threads run while a native call computes or waits, and keeps a daemon thread that comes back from
// one out of an interpreter that is ending. Every binding that computes uses it instead of
// nanobind::gil_scoped_release.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <thread>

#include <unistd.h>

namespace quadrille::python {

// Releases the interpreter lock for its life. CPython before 3.14 ends a daemon thread that asks for the lock of an
// ending interpreter by unwinding its stack, and that unwinding terminates the process at the first destructor. So a
// thread that comes back after exit began (guard_exit()) sleeps until the process is gone; nobody joins it.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() {
    acquire();
    returning_.fetch_sub(1);
  }
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
  }
  void release() {
    state_ = PyEval_SaveThread();
    returning_.fetch_sub(1);
  }

  // From Python's atexit, when only daemon threads are left besides the calling one. Returns when no thread is between
  // its look at the flag and the lock or in a callback, which would be unwound, too; or after a second, where a
  // callback does not end. May be called again.
  static void begin_exit() {
    exit_thread_ = std::this_thread::get_id();
    exiting_.store(true);
    PyThreadState* state = PyEval_SaveThread();
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (returning_.load() != 0 && std::chrono::steady_clock::now() < patience) std::this_thread::yield();
    PyEval_RestoreThread(state);
  }

 private:
  PyThreadState* state_ = nullptr;
  inline static std::atomic<int> returning_{0};
  inline static std::atomic<bool> exiting_{false};
  inline static std::thread::id exit_thread_;
};

// Once, from the module's initialisation: module.begin_exit(), which atexit calls.
inline void guard_exit(nanobind::module_& module) {
  module.def("begin_exit", &ReleasedGil::begin_exit,
             "From here on daemon threads stay in the native calls they are in.");
  nanobind::module_::import_("atexit").attr("register")(module.attr("begin_exit"));
}

}  // namespace quadrille::python
