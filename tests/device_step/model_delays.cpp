// SPDX-License-Identifier: Apache-2.0
// The length of a delay is a function of seed, stream (in the order they came) and how many steps the stream had. In a
// captured step it is captured, too.
#include "device_step/model_delays.h"

#include "device/random_data.h"

namespace quadrille::testing {

void ModelDelays::before_step(const char* step, device::Stream stream) {
  count_step();
  uint64_t random = 0;
  {
    const std::scoped_lock lock(mutex_);
    Seen& seen = streams_.try_emplace(stream.handle, Seen{streams_.size(), 0}).first->second;
    random = hash(seed_ + 16 * seen.number, seen.steps++);
  }
  if (slow_) {
    if (slow_(step, stream)) delay_long(random, stream);
    return;
  }
  delay_some(random, stream);
}

}  // namespace quadrille::testing
