// SPDX-License-Identifier: Apache-2.0
// Memory whose last byte is the last of a mapped page: reading or writing behind it is an error of the device. In front
// of a take lie canaries.
#pragma once

#include <vector>

#include "device/device_memory.h"

namespace quadrille::testing {

class GuardedMemory : public Memory {
 public:
  GuardedMemory() = default;
  ~GuardedMemory() override;  // waits for the device
  void* take_bytes(size_t bytes, size_t alignment, uint8_t byte, device::Stream stream) override;
  std::unique_ptr<Memory> another() const override { return std::make_unique<GuardedMemory>(); }
  std::string harmed(device::Stream stream) const override;

 private:
  // A reserved range with one unmapped granule at its end; `handle` is the physical memory of the rest.
  struct Region {
    uint64_t address = 0, mapped = 0, reserved = 0, handle = 0;
    uint8_t* take = nullptr;
    size_t bytes = 0, front = 0;  // canaries in front of the take
  };
  std::vector<Region> regions_;
};

}  // namespace quadrille::testing
