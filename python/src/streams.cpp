// SPDX-License-Identifier: Apache-2.0
// The handles of streams, and the one of ours a GPU.
#include "streams.h"

#include <map>
#include <mutex>

#include "quadrille/c_api.h"
#include "raise_error.h"

namespace nb = nanobind;

namespace quadrille::python {

uintptr_t stream_handle(nb::handle stream) {
  if (stream.is_none()) return kLegacyStream;
  nb::object number = nb::borrow(stream);
  for (const char* name : {"cuda_stream", "ptr", "handle"}) {
    if (!nb::hasattr(stream, name)) continue;
    number = stream.attr(name);
    break;
  }
  uintptr_t handle = 0;
  if (PyLong_Check(number.ptr()) == 0 || !nb::try_cast(number, handle)) {
    throw nb::type_error(
        "stream: expected None, the handle as an int, or an object with cuda_stream, ptr or handle, found something "
        "else");
  }
  return handle == 0 ? kLegacyStream : handle;
}

namespace {

// One stream a GPU, made once.
class DeviceStreams {
 public:
  void* of(int32_t ordinal) {
    const std::lock_guard lock(mutex_);
    void*& stream = streams_[ordinal];
    if (stream != nullptr) return stream;
    const ChosenGpu gpu(ordinal);
    gpu.require();
    qd_error error;
    raise_error(qd_stream_create(&stream, &error), error);
    return stream;
  }

 private:
  std::mutex mutex_;
  std::map<int32_t, void*> streams_;
};

}  // namespace

ChosenGpu::ChosenGpu(int32_t ordinal) : ordinal_(ordinal) {
  if (qd_device_current(&before_, &error_) == QD_OK && before_ != ordinal) (void)qd_device_use(ordinal, &error_);
}

ChosenGpu::~ChosenGpu() {
  if (error_.code == QD_OK && before_ != ordinal_) (void)qd_device_use(before_, nullptr);
}

void ChosenGpu::require() const {
  raise_error(error_.code, error_);
}

void* own_stream(int32_t ordinal) {
  static DeviceStreams streams;
  return streams.of(ordinal);
}

void* keeper_stream(int32_t ordinal) {
  static DeviceStreams streams;
  return streams.of(ordinal);
}

bool is_captured(void* stream) {
  int32_t captured = 0;
  qd_error error;
  raise_error(qd_stream_captured(stream, &captured, &error), error);
  return captured != 0;
}

Marks::~Marks() {
  for (const auto& [stream, event] : events_) qd_event_destroy(event);
}

void Marks::note(void* stream) {
  if (is_captured(stream)) return;
  qd_error error;
  for (const auto& [known, event] : events_) {
    if (known == stream) return raise_error(qd_event_record(event, stream, &error), error);
  }
  void* event = nullptr;
  raise_error(qd_event_create(&event, &error), error);
  events_.emplace_back(stream, event);
  raise_error(qd_event_record(event, stream, &error), error);
}

bool Marks::order(void* stream) const {
  bool ordered = true;
  for (const auto& [noted, event] : events_) ordered = qd_stream_wait_event(stream, event, nullptr) == QD_OK && ordered;
  return ordered;
}

void follow(void* stream, void* leader) {
  qd_error error;
  raise_error(qd_stream_follow(stream, leader, &error), error);
}

CallStream::CallStream(int32_t ordinal, uintptr_t given) : gpu_(ordinal), given_(pointer_of(given)), stream_(given_) {
  gpu_.require();
  if (given != kLegacyStream && given != kPerThreadStream) return;
  stream_ = own_stream(ordinal);
  follow(stream_, given_);
}

void CallStream::finish() {
  if (stream_ != given_) follow(given_, stream_);
}

}  // namespace quadrille::python
