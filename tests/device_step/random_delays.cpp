// SPDX-License-Identifier: Apache-2.0
// The length of a delay is a function of seed, role, rank and how many steps the stream had.
#include "device_step/random_delays.h"

#include "device/device.h"
#include "device/must.h"
#include "device/random_data.h"
#include "device_step/delay.h"

namespace quadrille::testing {

void RandomDelays::before_step(const char*, device::Stream stream) {
  Named* named = nullptr;
  {
    const std::shared_lock lock(naming_);
    if (const auto found = streams_.find(stream.handle); found != streams_.end()) named = found->second.get();
  }
  if (named == nullptr) return;
  Named& entry = *named;
  const uint64_t number = entry.count.fetch_add(1);
  steps_.fetch_add(1);
  const uint64_t random =
      hash(seed_ + static_cast<uint64_t>(entry.role) + 16 * static_cast<uint64_t>(entry.rank), number);
  if (slow_.has_value()) {
    if (entry.is_slow(*slow_, slow_ranks_)) delay(2 * kLongest + static_cast<int64_t>(random % kLongest), stream);
    return;
  }
  // Half of the steps come at once.
  if (random % 2 == 0) delay(static_cast<int64_t>((random >> 8) % kLongest), stream);
}

void RandomDelays::fresh_buffer(void* memory, size_t bytes, device::Stream stream) {
  poisoned_.fetch_add(static_cast<int64_t>(bytes));
  must(device::fill(memory, 0xff, bytes, stream));
}

}  // namespace quadrille::testing
