// SPDX-License-Identifier: Apache-2.0
// Device memory from the stream-ordered pool, page-locked host memory, and copies that are ordered by a stream.
#include "device/cuda_status.h"

namespace quadrille::device {
namespace {

// The pool keeps what was released: giving it back to the system would synchronise the device.
Status keep_released_memory() {
  int ordinal = 0;
  QD_TRY_STATUS(cuda_status(cudaGetDevice(&ordinal), "asking for the thread's GPU"));
  cudaMemPool_t pool = nullptr;
  QD_TRY_STATUS(cuda_status(cudaDeviceGetDefaultMemPool(&pool, ordinal), "asking for the memory pool"));
  uint64_t threshold = UINT64_MAX;
  return cuda_status(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold),
                     "setting up the memory pool");
}

void* allocate_from_pool(void*, size_t bytes, Stream stream) {
  if (!keep_released_memory()) return nullptr;
  void* memory = nullptr;
  if (!cuda_status(cudaMallocAsync(&memory, bytes, native(stream)), "taking device memory")) return nullptr;
  return memory;
}
void release_to_pool(void*, void* memory, size_t, Stream stream) {
  (void)cuda_status(cudaFreeAsync(memory, native(stream)), "releasing device memory");
}

Status copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  if (bytes == 0) return {};
  if (to == nullptr || from == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "a copy of {} bytes from or to a null pointer", bytes);
  }
  return cuda_status(cudaMemcpyAsync(to, from, bytes, kind, native(stream)), "copying");
}

}  // namespace

Allocator default_allocator() {
  return {nullptr, allocate_from_pool, release_to_pool};
}

Result<MemoryInfo> memory_info() {
  MemoryInfo memory;
  QD_TRY_STATUS(cuda_status(cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes), "asking for the GPU's memory"));
  return memory;
}

Result<PinnedBuffer> PinnedBuffer::allocate(size_t bytes) {
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  QD_TRY_STATUS(cuda_status(cudaHostAlloc(&buffer.memory_, bytes, cudaHostAllocDefault), "locking host memory"));
  buffer.bytes_ = bytes;
  return buffer;
}
PinnedBuffer::~PinnedBuffer() {
  if (memory_ != nullptr) (void)cudaFreeHost(memory_);
}

Status copy_to_device(void* device, const void* host, size_t bytes, Stream stream) {
  return copy(device, host, bytes, cudaMemcpyHostToDevice, stream);
}
Status copy_to_host(void* host, const void* device, size_t bytes, Stream stream) {
  return copy(host, device, bytes, cudaMemcpyDeviceToHost, stream);
}
Status copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  return copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}
Status copy_rows_on_device(const RowCopy& c, Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  if (c.rows == 0 || c.row_bytes == 0) return {};
  if (c.to == nullptr || c.from == nullptr || c.to_pitch < c.row_bytes || c.from_pitch < c.row_bytes) {
    return make_error(
        ErrorCode::kInvalidArgument,
        "copying {} rows of {} bytes: expected memory and pitches of at least a row, found pitches {} and "
        "{}{}",
        c.rows, c.row_bytes, c.to_pitch, c.from_pitch,
        c.to == nullptr || c.from == nullptr ? " and a null pointer" : "");
  }
  return cuda_status(cudaMemcpy2DAsync(c.to, c.to_pitch, c.from, c.from_pitch, c.row_bytes, c.rows,
                                       cudaMemcpyDeviceToDevice, native(stream)),
                     "copying rows");
}
Status fill(void* device, uint8_t byte, size_t bytes, Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  if (bytes == 0) return {};
  if (device == nullptr) return make_error(ErrorCode::kInvalidArgument, "filling {} bytes at a null pointer", bytes);
  return cuda_status(cudaMemsetAsync(device, byte, bytes, native(stream)), "filling device memory");
}

}  // namespace quadrille::device
