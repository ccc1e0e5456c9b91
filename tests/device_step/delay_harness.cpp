// SPDX-License-Identifier: Apache-2.0
#include "device_step/delay_harness.h"

#include "device/device.h"
#include "device/must.h"
#include "device_step/delay.h"

namespace quadrille::testing {

void DelayHarness::fresh_buffer(void* memory, size_t bytes, device::Stream stream) {
  poisoned_.fetch_add(static_cast<int64_t>(bytes));
  must(device::fill(memory, 0xff, bytes, stream));
}

void DelayHarness::delay_some(uint64_t random, device::Stream stream) const {
  if (random % 2 == 0) delay(static_cast<int64_t>((random >> 8) % static_cast<uint64_t>(longest_)), stream);
}

void DelayHarness::delay_long(uint64_t random, device::Stream stream) const {
  delay(2 * longest_ + static_cast<int64_t>(random % static_cast<uint64_t>(longest_)), stream);
}

}  // namespace quadrille::testing
