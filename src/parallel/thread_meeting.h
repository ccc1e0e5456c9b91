// SPDX-License-Identifier: Apache-2.0
// Where rank threads meet: one arrival counter a rank, waiting that spins for a moment and then parks, and the rule by
// which memory of one rank is read by another although either may be lost meanwhile. Used by thread_group.cpp.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "parallel/loss.h"

namespace quadrille::parallel {

class ThreadMeeting {
 public:
  ThreadMeeting(int size, LossState& loss);

  // Counts rank `own` in and waits until every rank has been counted in as often. False when a rank is lost before.
  // Everything that a rank wrote before is visible to all after.
  bool meet(int own);
  // Between begin_reading (true) and end_reading a rank may read what others have posted: they keep it alive. False
  // when a rank is lost: then nobody may read any more.
  bool begin_reading(int own);
  void end_reading(int own);
  // After a loss: returns when no rank reads any longer, so that what this rank posted may go.
  void wait_for_readers();
  // Wakes the parked ones; they look at the loss.
  void wake();

 private:
  struct alignas(64) Rank {
    std::atomic<uint64_t> arrived{0};
    std::atomic<bool> reading{false};
  };
  bool all_came(uint64_t goal) const;

  LossState& loss_;
  std::vector<Rank> ranks_;
  int spins_;
  std::atomic<int> parked_{0};
  std::mutex mutex_;  // pairs with wake_
  std::condition_variable wake_;
};

}  // namespace quadrille::parallel
