// SPDX-License-Identifier: Apache-2.0
// The way of a checkpoint's bytes to a GPU: a few slots of page-locked memory, each filled while the copies out of the
// others run. Used by device_load.cpp.
#pragma once

#include <cstddef>
#include <optional>

#include "core/result.h"
#include "device/device.h"

namespace quadrille::model {

// Page-locked memory that is filled again when the copies out of it are done.
class PinnedRing {
 public:
  static constexpr size_t kSlots = 3;

  Status open(size_t bytes) {
    for (Slot& slot : slots_) {
      QD_TRY(slot.memory, device::PinnedBuffer::allocate(bytes));
      QD_TRY(slot.event, device::OwnedEvent::create());
    }
    return {};
  }
  // The next slot; waits until its last copy is done.
  Result<std::byte*> next() {
    Slot& slot = slots_[at_];
    if (slot.is_sent) QD_TRY_STATUS(device::synchronize(slot.event->get()));
    slot.is_sent = false;
    return static_cast<std::byte*>(slot.memory.get());
  }
  // The copies out of next() are all enqueued on `copy`.
  Status sent(device::Stream copy) {
    Slot& slot = slots_[at_];
    QD_TRY_STATUS(device::record(slot.event->get(), copy));
    slot.is_sent = true;
    at_ = (at_ + 1) % kSlots;
    return {};
  }

 private:
  struct Slot {
    device::PinnedBuffer memory;
    std::optional<device::OwnedEvent> event;
    bool is_sent = false;
  };
  Slot slots_[kSlots];
  size_t at_ = 0;
};

}  // namespace quadrille::model
