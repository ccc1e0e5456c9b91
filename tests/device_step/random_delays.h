// SPDX-License-Identifier: Apache-2.0
// The step harness of the stress test: delays of random length before every step, poison in every fresh buffer, and one
// hand-over that may be missing.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>

#include "device/order.h"

namespace quadrille::testing {

// What a stream of an engine is for.
enum class Role { kMain, kSide, kPrepare, kCopy };

class RandomDelays : public device::StepHarness {
 public:
  static constexpr int64_t kLongest = 200'000;  // nanoseconds
  explicit RandomDelays(uint64_t seed) : seed_(seed) {}

  // Before the engine of the stream runs. A stream without a name gets no delays.
  void name_stream(device::Stream stream, Role role) {
    const std::unique_lock lock(naming_);
    streams_[stream.handle] = std::make_unique<Named>(role);
  }
  // Steps of this role take longer than two random delays, those of the others nothing: the side that a missing
  // hand-over would have waited for comes late.
  void slow_only(Role role) { slow_ = role; }
  void drop(device::HandOver site) { dropped_ = site; }

  void before_step(const char* step, device::Stream stream) override;
  void fresh_buffer(void* memory, size_t bytes, device::Stream stream) override;
  bool drops(device::HandOver site) override { return dropped_ == site; }

  int64_t steps() const { return steps_.load(); }
  int64_t poisoned_bytes() const { return poisoned_.load(); }

 private:
  struct Named {
    explicit Named(Role r) : role(r) {}
    Role role;
    std::atomic<uint64_t> count{0};
  };
  uint64_t seed_;
  std::shared_mutex naming_;
  std::map<void*, std::unique_ptr<Named>> streams_;
  std::optional<Role> slow_;
  std::optional<device::HandOver> dropped_;
  std::atomic<int64_t> steps_{0}, poisoned_{0};
};

// The harness is set as long as this lives; everything has run when it goes.
class Harnessed {
 public:
  explicit Harnessed(RandomDelays* delays) { device::set_step_harness(delays); }
  Harnessed(const Harnessed&) = delete;
  Harnessed& operator=(const Harnessed&) = delete;
  ~Harnessed() { device::set_step_harness(nullptr); }
};

}  // namespace quadrille::testing
