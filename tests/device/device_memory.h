// SPDX-License-Identifier: Apache-2.0
// Test buffers: poisoned when made, with canaries on both sides where a kernel writes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "device/device.h"
#include "device/must.h"

namespace quadrille::testing {

inline constexpr uint8_t kPoison = 0xff;  // NaN as bf16, fp32 and e4m3; -1 as an integer

// `count` values, every byte poisoned. At least 256 bytes, so that an empty tensor has an address too.
template <typename T>
device::Buffer poisoned(int64_t count, device::Stream stream, uint8_t byte = kPoison) {
  const size_t bytes = std::max<size_t>(256, static_cast<size_t>(count) * sizeof(T));
  device::Buffer buffer = must(device::Buffer::allocate(bytes, stream));
  must(device::fill(buffer.get(), byte, bytes, stream));
  return buffer;
}

// A copy of `values`. Returns when the values may go.
template <typename T>
device::Buffer on_device(const std::vector<T>& values, device::Stream stream) {
  device::Buffer buffer = poisoned<T>(static_cast<int64_t>(values.size()), stream);
  if (!values.empty()) must(device::copy_to_device(buffer.get(), values.data(), values.size() * sizeof(T), stream));
  must(device::synchronize(stream));
  return buffer;
}

template <typename T>
std::vector<T> on_host(const void* memory, int64_t count, device::Stream stream) {
  std::vector<T> values(static_cast<size_t>(count));
  if (count > 0) must(device::copy_to_host(values.data(), memory, values.size() * sizeof(T), stream));
  must(device::synchronize(stream));
  return values;
}

// Memory between two canaries.
class Fenced {
 public:
  static constexpr size_t kFence = 4096;
  static constexpr uint8_t kCanary = 0xc5;

  Fenced(size_t bytes, uint8_t byte, device::Stream stream) : bytes_(bytes), stream_(stream) {
    buffer_ = must(device::Buffer::allocate(bytes + 2 * kFence, stream));
    must(device::fill(buffer_.get(), kCanary, bytes + 2 * kFence, stream));
    refill(byte);
  }
  void refill(uint8_t byte) {
    if (bytes_ > 0) must(device::fill(get(), byte, bytes_, stream_));
  }
  uint8_t* get() const { return buffer_.as<uint8_t>() + kFence; }
  size_t size_bytes() const { return bytes_; }
  // Waits for the stream.
  bool intact() const { return intact_at(buffer_.as<uint8_t>()) && intact_at(buffer_.as<uint8_t>() + kFence + bytes_); }

 private:
  bool intact_at(const uint8_t* fence) const {
    for (uint8_t byte : on_host<uint8_t>(fence, kFence, stream_)) {
      if (byte != kCanary) return false;
    }
    return true;
  }
  device::Buffer buffer_;
  size_t bytes_;
  device::Stream stream_;
};

}  // namespace quadrille::testing
