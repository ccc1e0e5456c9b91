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

#include "device_step/delay_harness.h"

namespace quadrille::testing {

class ModelDelays final : public DelayHarness {
 public:
  static constexpr int64_t kLongest = 100'000;  // nanoseconds
  explicit ModelDelays(uint64_t seed) : DelayHarness(kLongest), seed_(seed) {}

  // Instead: only these steps are slow, by two of the longest delays and more; the others come at once.
  using Which = std::function<bool(std::string_view step, device::Stream stream)>;
  void slow_only(Which which) { slow_ = std::move(which); }

  void before_step(const char* step, device::Stream stream) override;

 private:
  struct Seen {
    uint64_t number = 0, steps = 0;
  };
  uint64_t seed_;
  Which slow_;
  std::mutex mutex_;
  std::map<void*, Seen> streams_;
};

}  // namespace quadrille::testing
