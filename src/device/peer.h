// SPDX-License-Identifier: Apache-2.0
// Device memory that other GPUs of this host read and write: by plain address inside of one process, by a handle
// between processes. Called by parallel/peer_memory.cpp when ranks are set up and ended; these calls may wait.
#pragma once

#include <array>
#include <cstddef>
#include <utility>

#include "core/result.h"
#include "device/handles.h"

namespace quadrille::device {

// Sixteen bytes that name a GPU on every process of a host, whatever CUDA_VISIBLE_DEVICES says.
using GpuName = std::array<std::byte, 16>;
Result<GpuName> gpu_name(int ordinal);
// The ordinal of that GPU in this process, -1 when it is not visible here.
Result<int> find_gpu(const GpuName& name);

// Lets the thread's GPU, `ordinal`, reach memory of GPU `peer` of this process. kUnsupported names both when the
// machine has no way between them. Nothing to do for ordinal == peer or when it was called before.
Status reach_peer(int ordinal, int peer);

// What another process of this host opens. Bytes, to be carried by whoever can.
struct MemoryHandle {
  std::array<std::byte, 64> bytes{};
};

// Memory of the thread's GPU, outside of the pool (whose memory has no handle), rounded up to 2 MiB so that a handle
// never shows a neighbour.
class PeerBuffer {
 public:
  PeerBuffer() = default;
  // kCapacity with the bytes asked for. Waits for the device: only where ranks begin.
  static Result<PeerBuffer> allocate(size_t bytes);
  PeerBuffer(PeerBuffer&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PeerBuffer& operator=(PeerBuffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  // Waits for the device. Nobody may use the memory any more, on any GPU.
  ~PeerBuffer();
  void* get() const { return memory_; }
  size_t size_bytes() const { return bytes_; }
  // kUnsupported when this machine has no handles.
  Result<MemoryHandle> handle() const;
  // Leaves the memory to the end of the process: where nobody can say whether others still use it.
  void abandon() { memory_ = nullptr; }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

// The memory behind another process's handle, mapped for the thread's GPU. kUnsupported when it cannot be mapped.
class PeerMapping {
 public:
  PeerMapping() = default;
  static Result<PeerMapping> open(const MemoryHandle& handle);
  PeerMapping(PeerMapping&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)) {}
  PeerMapping& operator=(PeerMapping&& other) noexcept {
    std::swap(memory_, other.memory_);
    return *this;
  }
  // No kernel of this process may use the memory any more.
  ~PeerMapping();
  void* get() const { return memory_; }

 private:
  void* memory_ = nullptr;
};

}  // namespace quadrille::device
