// SPDX-License-Identifier: Apache-2.0
// Where the device tests take memory: from the pool between canaries, or (guarded_memory.h) in front of an unmapped
// page. Fresh memory is poisoned.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"
#include "device/must.h"

namespace quadrille::testing {

inline constexpr uint8_t kPoison = 0xff;  // NaN as bf16, fp32 and e4m3; -1 as an integer
inline constexpr uint8_t kCanary = 0xc5;

// Poison counts as written memory for compute-sanitizer's initcheck; with QD_TEST_UNPOISONED set it is left out.
inline bool poisons() {
  static const bool on = std::getenv("QD_TEST_UNPOISONED") == nullptr;
  return on;
}

// Takes live as long as the object.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  virtual ~Memory() = default;

  // At a multiple of `alignment` (256 at most), every byte `byte`. Zero bytes have an address, too.
  virtual void* take_bytes(size_t bytes, size_t alignment, uint8_t byte, device::Stream stream) = 0;
  // An empty one of the same kind.
  virtual std::unique_ptr<Memory> another() const = 0;
  // Which takes have harmed canaries around them; empty: none. Waits for the stream.
  virtual std::string harmed(device::Stream stream) const = 0;

  template <typename T>
  T* take(int64_t count, size_t alignment, device::Stream stream, uint8_t byte = kPoison) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T), alignment, byte, stream));
  }
  // A copy of `values`, aligned as T. Returns when the values may go.
  template <typename T>
  T* copy_of(const std::vector<T>& values, device::Stream stream) {
    T* memory = take<T>(static_cast<int64_t>(values.size()), alignof(T), stream);
    if (!values.empty()) must(device::copy_to_device(memory, values.data(), values.size() * sizeof(T), stream));
    must(device::synchronize(stream));
    return memory;
  }
};

template <typename T>
std::vector<T> on_host(const void* memory, int64_t count, device::Stream stream) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0) must(device::copy_to_host(values.data(), memory, values.size() * sizeof(T), stream));
  must(device::synchronize(stream));
  return values;
}

// "" or how many of the `bytes` at `memory` are no canaries any more.
inline std::string harmed_canaries(const uint8_t* memory, size_t bytes, device::Stream stream) {
  size_t harmed = 0;
  for (uint8_t byte : on_host<uint8_t>(memory, static_cast<int64_t>(bytes), stream)) harmed += byte != kCanary ? 1 : 0;
  return harmed == 0 ? "" : fmt::format("{} of {} canaries", harmed, bytes);
}

// The stream-ordered pool, with canaries on both sides of a take.
class PoolMemory : public Memory {
 public:
  static constexpr size_t kFence = 1024;

  void* take_bytes(size_t bytes, size_t, uint8_t byte, device::Stream stream) override {
    device::Buffer buffer = must(device::Buffer::allocate(bytes + 2 * kFence, stream));
    auto* memory = buffer.as<uint8_t>();
    must(device::fill(memory, kCanary, kFence, stream));
    if (byte != kPoison || poisons()) must(device::fill(memory + kFence, byte, bytes, stream));
    must(device::fill(memory + kFence + bytes, kCanary, kFence, stream));
    buffers_.push_back(std::move(buffer));
    return memory + kFence;
  }
  std::unique_ptr<Memory> another() const override { return std::make_unique<PoolMemory>(); }
  std::string harmed(device::Stream stream) const override {
    std::string text;
    for (const device::Buffer& buffer : buffers_) {
      const std::string front = harmed_canaries(buffer.as<uint8_t>(), kFence, stream);
      const std::string back = harmed_canaries(buffer.as<uint8_t>() + buffer.size_bytes() - kFence, kFence, stream);
      if (!front.empty() || !back.empty()) {
        text += fmt::format("take of {} bytes: before it [{}], behind it [{}]; ", buffer.size_bytes() - 2 * kFence,
                            front, back);
      }
    }
    return text;
  }

 private:
  std::vector<device::Buffer> buffers_;
};

}  // namespace quadrille::testing
