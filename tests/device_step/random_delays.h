// SPDX-License-Identifier: Apache-2.0
// The step harness of the stress test: delays of random length before every step, poison in every fresh buffer, and one
// hand-over that may be missing.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "device_step/delay_harness.h"

namespace quadrille::testing {

// What a stream of an engine is for.
enum class Role { kMain, kSide, kPrepare, kCopy };

class RandomDelays : public DelayHarness {
 public:
  static constexpr int64_t kLongest = 200'000;  // nanoseconds
  explicit RandomDelays(uint64_t seed) : DelayHarness(kLongest), seed_(seed) {}

  // Before the engine of the stream runs. A stream without a name gets no delays. `rank`: ranks that are in step by
  // their delays would hide what keeps them in step.
  void name_stream(device::Stream stream, Role role, int rank = 0) {
    const std::unique_lock lock(naming_);
    streams_[stream.handle] = std::make_unique<Named>(role, rank);
  }
  // Steps of this role take longer than two random delays, those of the others nothing: the side that a missing
  // hand-over would have waited for comes late. With ranks: only there, where that rank is in the list.
  void slow_only(Role role) { slow_ = role; }
  void slow_only(Role role, std::vector<int> ranks) {
    slow_ = role;
    slow_ranks_ = std::move(ranks);
  }

  void before_step(const char* step, device::Stream stream) override;

 private:
  struct Named {
    Named(Role r, int number) : role(r), rank(number) {}
    bool is_slow(Role which, const std::vector<int>& ranks) const {
      return role == which && (ranks.empty() || std::find(ranks.begin(), ranks.end(), rank) != ranks.end());
    }
    Role role;
    int rank;
    std::atomic<uint64_t> count{0};
  };
  uint64_t seed_;
  std::shared_mutex naming_;
  std::map<void*, std::unique_ptr<Named>> streams_;
  std::optional<Role> slow_;
  std::vector<int> slow_ranks_;  // none: all
};

}  // namespace quadrille::testing
