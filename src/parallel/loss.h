// SPDX-License-Identifier: Apache-2.0
// What is known about a lost rank: who, in which phase, why. Every body of the communicator asks here while it waits,
// so that no collective outlives a rank that will never come.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace quadrille::parallel {

// What a rank is doing, for the line that names a lost one.
enum class Phase : uint8_t { kStart, kLoad, kPrefill, kDecode };
inline constexpr int kNumPhases = 4;
const char* phase_name(Phase phase);

struct LostRank {
  int rank = 0;  // in the numbering of all ranks, also where a part of them noticed
  Phase phase = Phase::kStart;
  std::string why;

  // "rank 1 was lost in phase decode: its control connection closed"
  std::string text() const;
};

// Shared by all communicators of a rank (threads: of all ranks). Any thread may call anything.
class LossState {
 public:
  using Callback = std::function<void(const LostRank&)>;

  LossState();
  ~LossState();
  LossState(const LossState&) = delete;
  LossState& operator=(const LossState&) = delete;

  // The first declaration stands; it wakes every waiter, then runs the callbacks on this thread. False for later ones.
  bool declare(const LostRank& lost);
  bool any() const { return flag_.load(std::memory_order_seq_cst); }
  std::optional<LostRank> get() const;
  // Waits until a rank is lost, at most this long.
  std::optional<LostRank> wait_for(std::chrono::milliseconds most) const;
  // Called once when a rank is lost, at once when one already is. May end the process; must not call a collective.
  void on_lost(Callback callback);
  // Readable from the declaration on; for poll().
  int wake_fd() const { return wake_fd_; }
  // The kLostRank error of `what` on rank `own`.
  Error error(const char* what, int own) const;

 private:
  std::atomic<bool> flag_{false};
  int wake_fd_ = -1;
  mutable std::mutex mutex_;
  mutable std::condition_variable declared_;
  std::optional<LostRank> lost_;
  std::vector<Callback> callbacks_;
};

}  // namespace quadrille::parallel
