// SPDX-License-Identifier: Apache-2.0
// The length of a delay is a function of seed, role, rank and how many steps the stream had.
#include "device_step/random_delays.h"

#include "device/random_data.h"

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
  count_step();
  const uint64_t random =
      hash(seed_ + static_cast<uint64_t>(entry.role) + 16 * static_cast<uint64_t>(entry.rank), number);
  if (slow_.has_value()) {
    if (entry.is_slow(*slow_, slow_ranks_)) delay_long(random, stream);
    return;
  }
  delay_some(random, stream);
}

}  // namespace quadrille::testing
