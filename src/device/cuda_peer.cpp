// SPDX-License-Identifier: Apache-2.0
// Peer access, handles of memory and their mappings. The only place that takes memory from the device itself.
#include <cstring>

#include "device/cuda_status.h"
#include "device/peer.h"

namespace quadrille::device {
namespace {

constexpr size_t kPage = size_t{2} << 20;

Error unsupported(cudaError_t error, const char* what) {
  (void)cudaGetLastError();
  return make_error(ErrorCode::kUnsupported, "{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

}  // namespace

Result<GpuName> gpu_name(int ordinal) {
  cudaDeviceProp all{};
  QD_TRY_STATUS(cuda_status(cudaGetDeviceProperties(&all, ordinal), "asking for a GPU's name"));
  GpuName name;
  static_assert(sizeof(all.uuid) == sizeof(name));
  std::memcpy(name.data(), &all.uuid, sizeof name);
  return name;
}

Result<int> find_gpu(const GpuName& name) {
  QD_TRY(const int found, count());
  for (int ordinal = 0; ordinal < found; ++ordinal) {
    QD_TRY(const GpuName here, gpu_name(ordinal));
    if (here == name) return ordinal;
  }
  return -1;
}

Status reach_peer(int ordinal, int peer) {
  if (ordinal == peer) return {};
  int can = 0;
  QD_TRY_STATUS(cuda_status(cudaDeviceCanAccessPeer(&can, ordinal, peer), "asking for peer access"));
  if (can == 0) {
    return make_error(ErrorCode::kUnsupported,
                      "GPU {} cannot reach the memory of GPU {}: expected NVLink or PCIe peer access (nvidia-smi topo "
                      "-p2p r shows it)",
                      ordinal, peer);
  }
  QD_TRY_STATUS(use(ordinal));
  const cudaError_t error = cudaDeviceEnablePeerAccess(peer, 0);
  if (error == cudaSuccess) return {};
  if (error == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
    return {};
  }
  return unsupported(error, "enabling peer access");
}

Result<PeerBuffer> PeerBuffer::allocate(size_t bytes) {
  PeerBuffer buffer;
  const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
  if (rounded == 0) return buffer;
  const cudaError_t error = cudaMalloc(&buffer.memory_, rounded);
  if (error != cudaSuccess) {
    buffer.memory_ = nullptr;
    QD_TRY_STATUS(cuda_status(error, "taking memory that peers can reach"));
  }
  buffer.bytes_ = rounded;
  return buffer;
}

PeerBuffer::~PeerBuffer() {
  if (memory_ != nullptr) (void)cuda_status(cudaFree(memory_), "releasing memory of peers");
}

Result<MemoryHandle> PeerBuffer::handle() const {
  cudaIpcMemHandle_t native_handle{};
  const cudaError_t error = cudaIpcGetMemHandle(&native_handle, memory_);
  if (error != cudaSuccess) return unsupported(error, "making a handle of device memory for other processes");
  MemoryHandle handle;
  static_assert(sizeof(native_handle) == sizeof(handle.bytes));
  std::memcpy(handle.bytes.data(), &native_handle, sizeof native_handle);
  return handle;
}

Result<PeerMapping> PeerMapping::open(const MemoryHandle& handle) {
  cudaIpcMemHandle_t native_handle{};
  std::memcpy(&native_handle, handle.bytes.data(), sizeof native_handle);
  PeerMapping mapping;
  const cudaError_t error = cudaIpcOpenMemHandle(&mapping.memory_, native_handle, cudaIpcMemLazyEnablePeerAccess);
  if (error == cudaSuccess) return mapping;
  mapping.memory_ = nullptr;
  return unsupported(error, "mapping the device memory of another process");
}

PeerMapping::~PeerMapping() {
  if (memory_ != nullptr) (void)cuda_status(cudaIpcCloseMemHandle(memory_), "unmapping memory of another process");
}

}  // namespace quadrille::device
