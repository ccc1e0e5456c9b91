// SPDX-License-Identifier: Apache-2.0
// The step harness of the whole model's stress test: delays of random length before every step of every stream that
// comes along, poison in every fresh buffer, and one hand-over that may be missing.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>

#include "device/order.h"

namespace quadrille::testing {

class ModelDelays final : public device::StepHarness {
 public:
  static constexpr int64_t kLongest = 100'000;  // nanoseconds
  explicit ModelDelays(uint64_t seed) : seed_(seed) {}

  // Instead: only these steps are slow, by two of the longest delays and more; the others come at once.
  using Which = std::function<bool(std::string_view step, device::Stream stream)>;
  void slow_only(Which which) { slow_ = std::move(which); }
  void drop(device::HandOver site) { dropped_ = site; }

  void before_step(const char* step, device::Stream stream) override;
  void fresh_buffer(void* memory, size_t bytes, device::Stream stream) override;
  bool drops(device::HandOver site) override { return dropped_ == site; }

  int64_t steps() const { return steps_.load(); }
  int64_t poisoned_bytes() const { return poisoned_.load(); }

 private:
  struct Seen {
    uint64_t number = 0, steps = 0;
  };
  uint64_t seed_;
  Which slow_;
  std::optional<device::HandOver> dropped_;
  std::mutex mutex_;
  std::map<void*, Seen> streams_;
  std::atomic<int64_t> steps_{0}, poisoned_{0};
};

// The harness is set as long as this lives; everything has run when it goes.
class UnderDelays {
 public:
  explicit UnderDelays(ModelDelays* delays) { device::set_step_harness(delays); }
  UnderDelays(const UnderDelays&) = delete;
  UnderDelays& operator=(const UnderDelays&) = delete;
  ~UnderDelays() { device::set_step_harness(nullptr); }
};

}  // namespace quadrille::testing
