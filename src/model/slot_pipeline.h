// SPDX-License-Identifier: Apache-2.0
// Work that goes through the page-locked ring: threads fill the parts of a slot, whoever fills the last one sends it,
// while the others fill the slots behind. Used by device_load.cpp.
#pragma once

#include <atomic>
#include <cstddef>

#include "core/result.h"
#include "core/thread_pool.h"
#include "device/device.h"
#include "model/pinned_ring.h"

namespace quadrille::model {

class SlotWork {
 public:
  virtual ~SlotWork() = default;
  virtual size_t num_slots() const = 0;
  virtual size_t num_parts(size_t slot) const = 0;  // 1 or more
  // Called by several threads at once, each part by one.
  virtual Status fill(size_t slot, size_t part, std::byte* memory) = 0;
  // Enqueues the copies out of a slot whose parts are all filled. One call at a time, slots in any order.
  virtual Status send(size_t slot, std::byte* memory) = 0;
};

// Seconds, summed over the threads: `wait` is for the ring, that is for the copies.
struct SlotTimes {
  double fill = 0, send = 0, wait = 0;
};

struct SlotPipeline {
  ThreadPool* pool = nullptr;
  PinnedRing* ring = nullptr;  // open
  int ordinal = 0;             // of the GPU
  device::Stream copy;         // that send() enqueues on
  const std::atomic<bool>* cancel = nullptr;
};

// Returns when everything is sent; the copies may still run. Of several errors that of the first part in the order of
// slots is returned: parts are claimed in this order, so it is the same at any number of threads. kCancelled.
Result<SlotTimes> run_slots(const SlotPipeline& pipeline, SlotWork* work);

}  // namespace quadrille::model
