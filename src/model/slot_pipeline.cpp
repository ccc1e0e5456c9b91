// SPDX-License-Identifier: Apache-2.0
// One lock for who claims what; the work itself runs outside of it. Whoever waits for a slot waits for threads that
// have claimed parts before him, and the first of those waits for nobody.
#include "model/slot_pipeline.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <vector>

namespace quadrille::model {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

class Pipeline {
 public:
  Pipeline(const SlotPipeline& pipeline, SlotWork* work)
      : pipeline_(pipeline), work_(*work), slots_(work->num_slots()) {}

  Result<SlotTimes> run() {
    pipeline_.pool->run(pipeline_.pool->num_active(), [&](int64_t) { run_thread(); });
    if (failed_) return error_;
    return times_;
  }

 private:
  enum class State { kClosed, kOpen, kSent };
  struct Slot {
    size_t num_parts = 0, num_filled = 0;
    State state = State::kClosed;
  };
  struct Claim {
    size_t slot = 0, part = 0;
  };

  // An exception must not leave the others waiting.
  void run_thread() {
    try {
      const Status status = device::use(pipeline_.ordinal);
      if (!status) fail({}, status.error());
      while (const std::optional<Claim> claim = next()) {
        const Status done = work_on(*claim);
        if (!done) fail(*claim, done.error());
      }
    } catch (...) {
      fail({}, make_error(ErrorCode::kCapacity, "a thread of the load ended"));
      throw;
    }
  }

  std::optional<Claim> next() {
    const std::lock_guard lock(mutex_);
    if (failed_ || next_.slot == slots_.size()) return std::nullopt;
    if (pipeline_.cancel != nullptr && pipeline_.cancel->load(std::memory_order_relaxed)) {
      set_error(next_, make_error(ErrorCode::kCancelled, "load: stopped on request after {} of {} slots", next_.slot,
                                  slots_.size()));
      return std::nullopt;
    }
    const Claim claim = next_;
    if (claim.part == 0) slots_[claim.slot].num_parts = work_.num_parts(claim.slot);
    if (++next_.part == slots_[claim.slot].num_parts) next_ = {claim.slot + 1, 0};
    return claim;
  }

  Status work_on(const Claim& claim) {
    const Clock::time_point begin = Clock::now();
    QD_TRY(const bool is_open, claim.part == 0 ? open(claim.slot) : wait_until_open(claim.slot));
    if (!is_open) return {};
    const Clock::time_point opened = Clock::now();
    std::byte* const memory = pipeline_.ring->memory(ring_slot(claim.slot));
    QD_TRY_STATUS(work_.fill(claim.slot, claim.part, memory));
    const Clock::time_point filled = Clock::now();
    if (is_last(claim.slot)) QD_TRY_STATUS(send(claim.slot, memory));
    const std::lock_guard lock(mutex_);
    times_.wait += std::chrono::duration<double>(opened - begin).count();
    times_.fill += std::chrono::duration<double>(filled - opened).count();
    times_.send += seconds_since(filled);
    return {};
  }

  static size_t ring_slot(size_t slot) { return slot % PinnedRing::kSlots; }

  // False: another thread failed. The slot before in the same memory is sent, then its copies are done.
  Result<bool> open(size_t slot) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] {
        return failed_ || slot < PinnedRing::kSlots || slots_[slot - PinnedRing::kSlots].state == State::kSent;
      });
      if (failed_) return false;
    }
    QD_TRY_STATUS(pipeline_.ring->wait_until_free(ring_slot(slot)));
    const std::lock_guard lock(mutex_);
    slots_[slot].state = State::kOpen;
    changed_.notify_all();
    return true;
  }

  Result<bool> wait_until_open(size_t slot) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failed_ || slots_[slot].state != State::kClosed; });
    return !failed_;
  }

  bool is_last(size_t slot) {
    const std::lock_guard lock(mutex_);
    return ++slots_[slot].num_filled == slots_[slot].num_parts;
  }

  Status send(size_t slot, std::byte* memory) {
    {
      const std::lock_guard lock(send_mutex_);
      QD_TRY_STATUS(work_.send(slot, memory));
      QD_TRY_STATUS(pipeline_.ring->sent(ring_slot(slot), pipeline_.copy));
    }
    const std::lock_guard lock(mutex_);
    slots_[slot].state = State::kSent;
    changed_.notify_all();
    return {};
  }

  void fail(const Claim& at, const Error& error) {
    const std::lock_guard lock(mutex_);
    set_error(at, error);
  }
  void set_error(const Claim& at, const Error& error) {
    const bool is_first =
        !failed_ || at.slot < failed_at_.slot || (at.slot == failed_at_.slot && at.part < failed_at_.part);
    if (is_first) {
      error_ = error;
      failed_at_ = at;
    }
    failed_ = true;
    changed_.notify_all();
  }

  const SlotPipeline& pipeline_;
  SlotWork& work_;
  std::mutex send_mutex_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::vector<Slot> slots_;
  Claim next_, failed_at_;
  bool failed_ = false;
  Error error_;
  SlotTimes times_;
};

}  // namespace

Result<SlotTimes> run_slots(const SlotPipeline& pipeline, SlotWork* work) {
  return Pipeline(pipeline, work).run();
}

}  // namespace quadrille::model
