// SPDX-License-Identifier: Apache-2.0
// The way of a checkpoint's bytes to a GPU: a few slots of page-locked memory, filled while the copies out of the
// others run. Used by slot_pipeline.cpp.
#pragma once

#include <cstddef>
#include <optional>

#include "core/result.h"
#include "device/device.h"

namespace quadrille::model {

// Page-locked memory that is filled again when the copies out of it are done. A slot belongs to one thread at a time.
class PinnedRing {
 public:
  // Locking memory takes 0.5 s a GB (docs/loading.md), so the ring is small: enough slots that threads fill some while
  // others are on their way.
  static constexpr size_t kSlots = 6;
  static constexpr size_t kLeastSlotBytes = size_t{16} << 20;

  // Slots of at least `bytes`; those that are large enough stay.
  Status open(size_t bytes) {
    if (bytes_ >= bytes) return {};
    for (Slot& slot : slots_) {
      QD_TRY(slot.memory, device::PinnedBuffer::allocate(bytes));
      QD_TRY(slot.event, device::OwnedEvent::create());
    }
    bytes_ = bytes;
    return {};
  }
  size_t slot_bytes() const { return bytes_; }
  std::byte* memory(size_t slot) const { return static_cast<std::byte*>(slots_[slot].memory.get()); }
  // Waits until the copies out of the slot are done.
  Status wait_until_free(size_t slot) {
    if (slots_[slot].is_sent) QD_TRY_STATUS(device::synchronize(slots_[slot].event->get()));
    slots_[slot].is_sent = false;
    return {};
  }
  // The copies out of the slot are all enqueued on `copy`.
  Status sent(size_t slot, device::Stream copy) {
    QD_TRY_STATUS(device::record(slots_[slot].event->get(), copy));
    slots_[slot].is_sent = true;
    return {};
  }

 private:
  struct Slot {
    device::PinnedBuffer memory;
    std::optional<device::OwnedEvent> event;
    bool is_sent = false;
  };
  Slot slots_[kSlots];
  size_t bytes_ = 0;
};

}  // namespace quadrille::model
