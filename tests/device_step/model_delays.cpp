// SPDX-License-Identifier: Apache-2.0
// The length of a delay is a function of seed, stream (in the order they came) and how many steps the stream had. In a
// captured step it is captured, too.
#include "device_step/model_delays.h"

#include "device/device.h"
#include "device/must.h"
#include "device/random_data.h"
#include "device_step/delay.h"

namespace quadrille::testing {

void ModelDelays::before_step(const char* step, device::Stream stream) {
  steps_.fetch_add(1);
  uint64_t random = 0;
  {
    const std::scoped_lock lock(mutex_);
    Seen& seen = streams_.try_emplace(stream.handle, Seen{streams_.size(), 0}).first->second;
    random = hash(seed_ + 16 * seen.number, seen.steps++);
  }
  if (slow_) {
    if (slow_(step, stream)) delay(2 * kLongest + static_cast<int64_t>(random % kLongest), stream);
    return;
  }
  // Half of the steps come at once.
  if (random % 2 == 0) delay(static_cast<int64_t>((random >> 8) % kLongest), stream);
}

void ModelDelays::fresh_buffer(void* memory, size_t bytes, device::Stream stream) {
  poisoned_.fetch_add(static_cast<int64_t>(bytes));
  must(device::fill(memory, 0xff, bytes, stream));
}

}  // namespace quadrille::testing
