// SPDX-License-Identifier: Apache-2.0
// What needs no backend: which GPU and driver run our kernels, which streams are accepted, who owns a buffer.
#include "device/device.h"

#ifndef QD_CUDA_MAJOR
#define QD_CUDA_MAJOR 13
#endif

namespace quadrille::device {

Status check_properties(const Properties& p) {
  // A driver runs programs of its own major release and of older ones; minor releases do not matter.
  constexpr int kNeeded = QD_CUDA_MAJOR * 1000;
  if (p.driver_version < kNeeded) {
    return make_error(ErrorCode::kUnsupported,
                      "the NVIDIA driver is too old: expected one for CUDA {}.0 or newer, found one for CUDA {}.{}: "
                      "update the driver",
                      QD_CUDA_MAJOR, p.driver_version / 1000, p.driver_version % 1000 / 10);
  }
  if (p.major != 9 || p.minor != 0) {
    return make_error(
        ErrorCode::kUnsupported,
        "{}: expected compute capability 9.0 (Hopper: H100, H200, GH200), found {}.{}: use such a GPU, or "
        "run on the CPU",
        p.name, p.major, p.minor);
  }
  return {};
}

Status available(int ordinal) {
  QD_TRY(const Properties p, properties(ordinal));
  return check_properties(p);
}

Status check_stream(Stream stream) {
  // cudaStreamLegacy is 1, cudaStreamPerThread 2: both synchronise with the default stream.
  const auto value = reinterpret_cast<uintptr_t>(stream.handle);
  if (value > 2) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "expected a stream of its own, found the default stream (handle {}): create a non-blocking stream",
                    value);
}

namespace {

Error out_of_memory(size_t bytes) {
  const Result<MemoryInfo> found = memory_info();
  const MemoryInfo memory = found ? *found : MemoryInfo{};
  return make_error(ErrorCode::kCapacity, "asked for {} bytes of device memory, {} of {} are free: use a smaller batch",
                    bytes, memory.free_bytes, memory.total_bytes);
}

}  // namespace

Result<Buffer> Buffer::allocate(size_t bytes, Stream stream, const Allocator& allocator) {
  QD_TRY_STATUS(check_stream(stream));
  if (allocator.allocate == nullptr || allocator.release == nullptr) {
    QD_TRY_STATUS(count());  // a build without a device has no allocator of its own
    return make_error(ErrorCode::kInvalidArgument, "an allocator needs both functions, found a null pointer");
  }
  Buffer buffer;
  if (bytes == 0) return buffer;
  void* memory = allocator.allocate(allocator.context, bytes, stream);
  if (memory == nullptr) return out_of_memory(bytes);
  buffer.allocator_ = allocator;
  buffer.memory_ = memory;
  buffer.bytes_ = bytes;
  buffer.stream_ = stream;
  if (reinterpret_cast<uintptr_t>(memory) % 256 != 0) {
    return make_error(ErrorCode::kInvalidArgument, "the allocator gave memory that is not aligned to 256 bytes");
  }
  return buffer;
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(allocator_, other.allocator_);
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  std::swap(stream_, other.stream_);
  return *this;
}

Buffer::~Buffer() {
  if (memory_ != nullptr) allocator_.release(allocator_.context, memory_, bytes_, stream_);
}

}  // namespace quadrille::device
