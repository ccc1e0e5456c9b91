// SPDX-License-Identifier: Apache-2.0
// What the step harnesses share: how long a step is late, poison in every fresh buffer, one hand-over that may be
// missing, and how much of it there was.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "device/order.h"

namespace quadrille::testing {

class DelayHarness : public device::StepHarness {
 public:
  // `longest`: nanoseconds of a random delay.
  explicit DelayHarness(int64_t longest) : longest_(longest) {}
  void drop(device::HandOver site) { dropped_ = site; }

  void fresh_buffer(void* memory, size_t bytes, device::Stream stream) override;
  bool drops(device::HandOver site) override { return dropped_ == site; }

  int64_t steps() const { return steps_.load(); }
  int64_t poisoned_bytes() const { return poisoned_.load(); }

 protected:
  void count_step() { steps_.fetch_add(1); }
  // Half of the steps come at once, the others after a random time.
  void delay_some(uint64_t random, device::Stream stream) const;
  // More than two random delays.
  void delay_long(uint64_t random, device::Stream stream) const;

 private:
  int64_t longest_;
  std::optional<device::HandOver> dropped_;
  std::atomic<int64_t> steps_{0}, poisoned_{0};
};

// The harness is set as long as this lives; everything has run when it goes.
class Harnessed {
 public:
  explicit Harnessed(device::StepHarness* harness) { device::set_step_harness(harness); }
  Harnessed(const Harnessed&) = delete;
  Harnessed& operator=(const Harnessed&) = delete;
  ~Harnessed() { device::set_step_harness(nullptr); }
};

}  // namespace quadrille::testing
