// SPDX-License-Identifier: Apache-2.0
// A build without CUDA: every function says so.
#include "device/device.h"
#include "device/follow.h"
#include "device/peer.h"

namespace quadrille::device {
namespace {

Error no_cuda() {
  return make_error(ErrorCode::kUnsupported,
                    "this build has no CUDA backend: configure with -DQD_CUDA=ON where nvcc is installed");
}

}  // namespace

Result<int> count() {
  return no_cuda();
}
Result<Properties> properties(int) {
  return no_cuda();
}
Status use(int) {
  return no_cuda();
}
Result<MemoryInfo> memory_info() {
  return no_cuda();
}

Result<OwnedStream> OwnedStream::create() {
  return no_cuda();
}
OwnedStream::~OwnedStream() = default;
Result<OwnedEvent> OwnedEvent::create(bool) {
  return no_cuda();
}
OwnedEvent::~OwnedEvent() = default;

Status record(Event, Stream) {
  return no_cuda();
}
Status wait(Stream, Event) {
  return no_cuda();
}
Result<int> current() {
  return no_cuda();
}
Status follow(Stream, Stream) {
  return no_cuda();
}
Status synchronize(Stream) {
  return no_cuda();
}
Status synchronize(Event) {
  return no_cuda();
}
Result<float> elapsed_ms(Event, Event) {
  return no_cuda();
}
Result<bool> reached(Event) {
  return no_cuda();
}
Result<bool> capturing(Stream) {
  return no_cuda();
}

Allocator default_allocator() {
  return {};
}
Result<PinnedBuffer> PinnedBuffer::allocate(size_t) {
  return no_cuda();
}
PinnedBuffer::~PinnedBuffer() = default;

Status copy_to_device(void*, const void*, size_t, Stream) {
  return no_cuda();
}
Status copy_to_host(void*, const void*, size_t, Stream) {
  return no_cuda();
}
Status copy_on_device(void*, const void*, size_t, Stream) {
  return no_cuda();
}
Status copy_rows_on_device(const RowCopy&, Stream) {
  return no_cuda();
}
Status fill(void*, uint8_t, size_t, Stream) {
  return no_cuda();
}

Result<Graph> Graph::capture(Stream, const std::function<Status()>&) {
  return no_cuda();
}
Graph::~Graph() = default;
Status Graph::launch(Stream) const {
  return no_cuda();
}

Result<GpuName> gpu_name(int) {
  return no_cuda();
}
Result<int> find_gpu(const GpuName&) {
  return no_cuda();
}
Status reach_peer(int, int) {
  return no_cuda();
}
Result<PeerBuffer> PeerBuffer::allocate(size_t) {
  return no_cuda();
}
PeerBuffer::~PeerBuffer() = default;
Result<MemoryHandle> PeerBuffer::handle() const {
  return no_cuda();
}
Result<PeerMapping> PeerMapping::open(const MemoryHandle&) {
  return no_cuda();
}
PeerMapping::~PeerMapping() = default;

}  // namespace quadrille::device
