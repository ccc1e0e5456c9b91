// SPDX-License-Identifier: Apache-2.0
// Memory, streams, events and graphs of a GPU behind one small interface without CUDA headers. Nothing here uses the
// default stream, and nothing waits for the device unless its name says so. A build without CUDA has the same
// functions; they return kUnsupported with the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/result.h"
#include "device/handles.h"

namespace quadrille::device {

struct Properties {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int num_sms = 0;
  size_t total_bytes = 0;
  size_t free_bytes = 0;
  size_t l2_bytes = 0;
  int driver_version = 0;  // 13000 is 13.0
};

// Ok when this process can run our kernels on GPU `ordinal`: a build with CUDA, a driver that is new enough, compute
// capability 9.0. Otherwise kUnsupported: what was expected, what was found, what to do.
Status available(int ordinal = 0);
Result<int> count();
Result<Properties> properties(int ordinal);
// The rule of available() on given properties, so that tests can ask about machines that they do not have.
Status check_properties(const Properties& properties);
// Ok for a stream of one's own: the default streams (null, and CUDA's two special handles) are refused.
Status check_stream(Stream stream);
// The calling thread's GPU from here on.
Status use(int ordinal);
// Memory of the calling thread's GPU.
struct MemoryInfo {
  size_t free_bytes = 0, total_bytes = 0;
};
Result<MemoryInfo> memory_info();

// A stream that does not synchronise with the default stream.
class OwnedStream {
 public:
  static Result<OwnedStream> create();
  OwnedStream(OwnedStream&& other) noexcept : stream_(std::exchange(other.stream_, {})) {}
  OwnedStream& operator=(OwnedStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~OwnedStream();
  Stream get() const { return stream_; }
  // Between this object and a bare handle: who holds the handle destroys it.
  Stream release() { return std::exchange(stream_, {}); }
  static OwnedStream adopt(Stream stream) { return OwnedStream(stream); }

 private:
  explicit OwnedStream(Stream stream) : stream_(stream) {}
  Stream stream_;
};

// `timed`: elapsed_ms() may be asked of a pair of them; others are cheaper.
class OwnedEvent {
 public:
  static Result<OwnedEvent> create(bool timed = false);
  OwnedEvent(OwnedEvent&& other) noexcept : event_(std::exchange(other.event_, {})) {}
  OwnedEvent& operator=(OwnedEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~OwnedEvent();
  Event get() const { return event_; }
  Event release() { return std::exchange(event_, {}); }
  static OwnedEvent adopt(Event event) { return OwnedEvent(event); }

 private:
  explicit OwnedEvent(Event event) : event_(event) {}
  Event event_;
};

Status record(Event event, Stream stream);
Status wait(Stream stream, Event event);
// Host waits; for programs and tests, never inside the library's own steps.
Status synchronize(Stream stream);
Status synchronize(Event event);
Result<float> elapsed_ms(Event begin, Event end);
// Whether the work before a recorded event is done; never waits, may be asked while a stream is captured.
Result<bool> reached(Event event);
// Whether calls on the stream are being captured into a graph.
Result<bool> capturing(Stream stream);

// Whose memory: the caller's, or the stream-ordered pool of the device (default_allocator).
struct Allocator {
  void* context = nullptr;
  // 256-byte aligned device memory usable on `stream` from here on; null when there is none.
  void* (*allocate)(void* context, size_t bytes, Stream stream) = nullptr;
  void (*release)(void* context, void* memory, size_t bytes, Stream stream) = nullptr;
};
Allocator default_allocator();

// Device memory, released in the order of the stream it was taken on.
class Buffer {
 public:
  Buffer() = default;
  // Error kCapacity with the bytes asked for and those free.
  static Result<Buffer> allocate(size_t bytes, Stream stream, const Allocator& allocator = default_allocator());
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();
  void* get() const { return memory_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  size_t size_bytes() const { return bytes_; }
  // Releases in the order of this stream instead: one that comes after the last use.
  void release_on(Stream stream) { stream_ = stream; }
  // Hands the memory out: whoever holds it releases it.
  void* release() {
    bytes_ = 0;
    return std::exchange(memory_, nullptr);
  }

 private:
  Allocator allocator_;
  void* memory_ = nullptr;
  size_t bytes_ = 0;
  Stream stream_;
};

// Page-locked host memory: copies from and to it are asynchronous.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static Result<PinnedBuffer> allocate(size_t bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedBuffer();
  void* get() const { return memory_; }
  size_t size_bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

Status copy_to_device(void* device, const void* host, size_t bytes, Stream stream);
Status copy_to_host(void* host, const void* device, size_t bytes, Stream stream);
Status copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
// `rows` rows of `row_bytes`, which begin to_pitch and from_pitch bytes apart (at least row_bytes).
struct RowCopy {
  void* to = nullptr;
  size_t to_pitch = 0;
  const void* from = nullptr;
  size_t from_pitch = 0;
  size_t row_bytes = 0;
  size_t rows = 0;
};
Status copy_rows_on_device(const RowCopy& copy, Stream stream);
Status fill(void* device, uint8_t byte, size_t bytes, Stream stream);

// A captured sequence of calls.
class Graph {
 public:
  // Runs `enqueue` with the stream in capture mode; nothing executes. An error of `enqueue` ends the capture cleanly.
  static Result<Graph> capture(Stream stream, const std::function<Status()>& enqueue);
  Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~Graph();
  Status launch(Stream stream) const;

 private:
  explicit Graph(void* exec) : exec_(exec) {}
  void* exec_ = nullptr;  // cudaGraphExec_t
};

}  // namespace quadrille::device
