// SPDX-License-Identifier: Apache-2.0
// Streams as queues with a thread each; an event is the marker that its last record put into a queue.
#include "support/host_device.h"

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "device/peer.h"

namespace quadrille::device {
namespace {

std::mutex gpu_mutex;  // guards the counters
HostGpu the_gpu;

class Marker {
 public:
  void set() {
    const std::lock_guard lock(mutex_);
    is_set_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return is_set_; });
  }
  bool is_set() {
    const std::lock_guard lock(mutex_);
    return is_set_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_set_ = false;
};

class HostStream {
 public:
  HostStream() : thread_([this] { run(); }) {}
  HostStream(const HostStream&) = delete;
  HostStream& operator=(const HostStream&) = delete;
  ~HostStream() {
    push({});
    thread_.join();
  }
  // An empty function ends the thread behind all work.
  void push(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
    changed_.notify_all();
  }

 private:
  void run() {
    while (true) {
      std::function<void()> work;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !queue_.empty(); });
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      if (!work) return;
      std::this_thread::yield();
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  std::thread thread_;
};

struct HostEvent {
  std::mutex mutex;
  std::shared_ptr<Marker> marker;
};

HostStream* native(Stream stream) {
  return static_cast<HostStream*>(stream.handle);
}
std::shared_ptr<Marker> marker_of(Event event) {
  auto* const host = static_cast<HostEvent*>(event.handle);
  const std::lock_guard lock(host->mutex);
  return host->marker;
}

void count(int64_t HostGpu::*which, int64_t change) {
  const std::lock_guard lock(gpu_mutex);
  the_gpu.*which += change;
}

void* take(void*, size_t bytes, Stream) {
  const std::lock_guard lock(gpu_mutex);
  if (the_gpu.num_allocations++ == the_gpu.failing_allocation) return nullptr;
  if (bytes > the_gpu.properties.total_bytes - the_gpu.taken_bytes) return nullptr;
  void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (memory == nullptr) return nullptr;
  std::memset(memory, 0xcd, bytes);
  the_gpu.taken_bytes += bytes;
  the_gpu.peak_bytes = std::max(the_gpu.peak_bytes, the_gpu.taken_bytes);
  ++the_gpu.num_buffers;
  return memory;
}
void give_back(void*, void* memory, size_t bytes, Stream stream) {
  {
    const std::lock_guard lock(gpu_mutex);
    the_gpu.taken_bytes -= bytes;
    --the_gpu.num_buffers;
  }
  native(stream)->push([memory] { std::free(memory); });
}

Error no_peers() {
  return make_error(ErrorCode::kUnsupported, "a GPU of host memory has no peers");
}

Status copy(void* to, const void* from, size_t bytes, Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  if (bytes > 0) native(stream)->push([=] { std::memcpy(to, from, bytes); });
  return {};
}

}  // namespace

void reset_host_gpu(size_t bytes) {
  const std::lock_guard lock(gpu_mutex);
  the_gpu = {};
  the_gpu.properties.name = "H100 of host memory";
  the_gpu.properties.major = 9;
  the_gpu.properties.num_sms = 132;
  the_gpu.properties.l2_bytes = size_t{50} << 20;
  the_gpu.properties.total_bytes = bytes;
  the_gpu.properties.driver_version = 1000000;  // of any build
}
HostGpu& host_gpu() {
  return the_gpu;
}
std::string left_on_host_gpu() {
  const std::lock_guard lock(gpu_mutex);
  if (the_gpu.num_buffers + the_gpu.num_pinned + the_gpu.num_streams + the_gpu.num_events == 0) return "";
  return fmt::format("{} buffers, {} page-locked, {} streams, {} events", the_gpu.num_buffers, the_gpu.num_pinned,
                     the_gpu.num_streams, the_gpu.num_events);
}
void enqueue_on_host(Stream stream, std::function<void()> work) {
  native(stream)->push(std::move(work));
}

Result<int> count() {
  return the_gpu.num_gpus;
}
Result<Properties> properties(int ordinal) {
  if (ordinal < 0 || ordinal >= the_gpu.num_gpus) {
    return make_error(ErrorCode::kInvalidArgument, "GPU {}: expected 0..{}", ordinal, the_gpu.num_gpus - 1);
  }
  const std::lock_guard lock(gpu_mutex);
  Properties p = the_gpu.properties;
  p.free_bytes = p.total_bytes - the_gpu.taken_bytes;
  if (ordinal == the_gpu.num_gpus - 1 && the_gpu.major_of_last > 0) p.major = the_gpu.major_of_last;
  return p;
}
Status use(int) {
  return {};
}
Result<MemoryInfo> memory_info() {
  QD_TRY(const Properties p, properties(0));
  return MemoryInfo{p.free_bytes, p.total_bytes};
}

Result<OwnedStream> OwnedStream::create() {
  count(&HostGpu::num_streams, 1);
  return OwnedStream(Stream{new HostStream});
}
OwnedStream::~OwnedStream() {
  if (stream_.handle == nullptr) return;
  delete native(stream_);
  count(&HostGpu::num_streams, -1);
}
Result<OwnedEvent> OwnedEvent::create(bool) {
  count(&HostGpu::num_events, 1);
  return OwnedEvent(Event{new HostEvent});
}
OwnedEvent::~OwnedEvent() {
  if (event_.handle == nullptr) return;
  delete static_cast<HostEvent*>(event_.handle);
  count(&HostGpu::num_events, -1);
}

Status record(Event event, Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  auto marker = std::make_shared<Marker>();
  auto* const host = static_cast<HostEvent*>(event.handle);
  {
    const std::lock_guard lock(host->mutex);
    host->marker = marker;
  }
  native(stream)->push([marker] { marker->set(); });
  return {};
}
Status wait(Stream stream, Event event) {
  QD_TRY_STATUS(check_stream(stream));
  const std::shared_ptr<Marker> marker = marker_of(event);
  if (marker != nullptr) native(stream)->push([marker] { marker->wait(); });
  return {};
}
Status synchronize(Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  const auto marker = std::make_shared<Marker>();
  native(stream)->push([marker] { marker->set(); });
  marker->wait();
  return {};
}
Status synchronize(Event event) {
  const std::shared_ptr<Marker> marker = marker_of(event);
  if (marker != nullptr) marker->wait();
  return {};
}
Result<float> elapsed_ms(Event, Event) {
  return 1.0f;
}
Result<bool> reached(Event event) {
  const std::shared_ptr<Marker> marker = marker_of(event);
  return marker == nullptr || marker->is_set();
}
Result<bool> capturing(Stream) {
  return false;
}

Allocator default_allocator() {
  return {nullptr, take, give_back};
}
Result<PinnedBuffer> PinnedBuffer::allocate(size_t bytes) {
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  buffer.memory_ = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  buffer.bytes_ = bytes;
  count(&HostGpu::num_pinned, 1);
  return buffer;
}
PinnedBuffer::~PinnedBuffer() {
  if (memory_ == nullptr) return;
  std::free(memory_);
  count(&HostGpu::num_pinned, -1);
}

Status copy_to_device(void* device, const void* host, size_t bytes, Stream stream) {
  {
    const std::lock_guard lock(gpu_mutex);
    ++the_gpu.num_copies_to_device;
    the_gpu.bytes_to_device += bytes;
  }
  return copy(device, host, bytes, stream);
}
Status copy_to_host(void* host, const void* device, size_t bytes, Stream stream) {
  return copy(host, device, bytes, stream);
}
Status copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
  return copy(to, from, bytes, stream);
}
Status copy_rows_on_device(const RowCopy& rows, Stream stream) {
  for (size_t row = 0; row < rows.rows; ++row) {
    QD_TRY_STATUS(copy(static_cast<std::byte*>(rows.to) + row * rows.to_pitch,
                       static_cast<const std::byte*>(rows.from) + row * rows.from_pitch, rows.row_bytes, stream));
  }
  return {};
}
Status fill(void* device, uint8_t byte, size_t bytes, Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  native(stream)->push([=] { std::memset(device, byte, bytes); });
  return {};
}

Result<Graph> Graph::capture(Stream, const std::function<Status()>&) {
  return make_error(ErrorCode::kUnsupported, "a GPU of host memory captures no graph");
}
Graph::~Graph() = default;
Status Graph::launch(Stream) const {
  return make_error(ErrorCode::kUnsupported, "a GPU of host memory captures no graph");
}

Result<GpuName> gpu_name(int) {
  return no_peers();
}
Result<int> find_gpu(const GpuName&) {
  return no_peers();
}
Status reach_peer(int, int) {
  return no_peers();
}
Result<PeerBuffer> PeerBuffer::allocate(size_t) {
  return no_peers();
}
PeerBuffer::~PeerBuffer() = default;
Result<MemoryHandle> PeerBuffer::handle() const {
  return no_peers();
}
Result<PeerMapping> PeerMapping::open(const MemoryHandle&) {
  return no_peers();
}
PeerMapping::~PeerMapping() = default;

}  // namespace quadrille::device
