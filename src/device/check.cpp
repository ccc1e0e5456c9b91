// SPDX-License-Identifier: Apache-2.0
// What needs no device: which GPU and driver run our kernels, which streams are accepted, who owns a buffer.
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

Status check_stream(Stream stream) {
  // cudaStreamLegacy is 1, cudaStreamPerThread 2: both synchronise with the default stream.
  const auto value = reinterpret_cast<uintptr_t>(stream.handle);
  if (value > 2) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "expected a stream of its own, found the default stream (handle {}): create a non-blocking stream",
                    value);
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
