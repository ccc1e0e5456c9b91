// SPDX-License-Identifier: Apache-2.0
// Long work on a thread of its own, and the caller who waits for it: the caller's thread is told how far it has come,
// and may stop it. So a host language sees its signals while our threads compute.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "core/result.h"

namespace quadrille::session {

// Called on the waiting thread: at once, about every 50 ms, whether or not anything moved, and at the end. False stops
// the work.
using Watch = std::function<bool(const std::string& what, uint64_t done, uint64_t total)>;

class WatchedWork {
 public:
  // The working side.
  void update(const std::string& what, uint64_t done, uint64_t total);
  void finish(Status status);
  const std::atomic<bool>* cancelled() const { return &cancel_; }

  // The waiting side: returns what finish() was given. `watch` may be empty.
  Status wait(const Watch& watch);
  void cancel() { cancel_ = true; }

 private:
  std::mutex mutex_;
  std::condition_variable finished_;
  std::string what_;
  uint64_t done_ = 0, total_ = 0;
  std::optional<Status> status_;
  std::atomic<bool> cancel_{false};
};

// A thread that no signal is delivered to, but those that a thread raises itself: they are the host program's.
std::jthread thread_without_signals(std::function<void()> body);

// Exceptions become errors: kCapacity (no memory), kInvalidData.
Status without_exceptions(const std::function<Status()>& work);
// Runs `work` to its end on such a thread.
Status run_watched(const Watch& watch, const std::function<Status(WatchedWork&)>& work);

}  // namespace quadrille::session
