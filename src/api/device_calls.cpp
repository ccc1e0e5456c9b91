// SPDX-License-Identifier: Apache-2.0
// Devices, streams, events and memory as C functions over device/.
#include <algorithm>
#include <cstring>

#include "api/call.h"
#include "device/device.h"
#include "device/follow.h"

using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::check_struct;
using quadrille::api::guarded;
namespace device = quadrille::device;

extern "C" {

const char* qd_version(void) {
  return QD_VERSION;
}

const char* qd_result_name(qd_result status) {
  switch (status) {
    case QD_OK:
      return "ok";
    case QD_INVALID_ARGUMENT:
      return "invalid argument";
    case QD_INVALID_DATA:
      return "invalid data";
    case QD_UNSUPPORTED:
      return "unsupported";
    case QD_NOT_FOUND:
      return "not found";
    case QD_IO:
      return "io";
    case QD_CAPACITY:
      return "capacity";
    case QD_CANCELLED:
      return "cancelled";
    case QD_INTERNAL:
      return "internal";
  }
  return "unknown";
}

qd_result qd_device_count(int32_t* count, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(count, "count"));
    *count = 0;
    QD_TRY(*count, device::count());
    return {};
  });
}

qd_result qd_device_available(int32_t ordinal, qd_error* error) {
  return guarded(error, [&] { return device::available(ordinal); });
}

qd_result qd_device_get_info(int32_t ordinal, qd_device_info* info, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_struct(info, "qd_device_info"));
    QD_TRY(const device::Properties p, device::properties(ordinal));
    const size_t length = std::min(p.name.size(), sizeof info->name - 1);
    std::memcpy(info->name, p.name.data(), length);
    info->name[length] = '\0';
    info->major = p.major;
    info->minor = p.minor;
    info->num_sms = p.num_sms;
    info->driver_version = p.driver_version;
    info->total_bytes = p.total_bytes;
    info->free_bytes = p.free_bytes;
    return {};
  });
}

qd_result qd_device_use(int32_t ordinal, qd_error* error) {
  return guarded(error, [&] { return device::use(ordinal); });
}

qd_result qd_device_current(int32_t* ordinal, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(ordinal, "ordinal"));
    *ordinal = 0;
    QD_TRY(*ordinal, device::current());
    return {};
  });
}

qd_result qd_stream_create(void** stream, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(stream, "stream"));
    *stream = nullptr;
    QD_TRY(device::OwnedStream made, device::OwnedStream::create());
    *stream = made.release().handle;
    return {};
  });
}

void qd_stream_destroy(void* stream) {
  (void)device::OwnedStream::adopt({stream});
}

qd_result qd_stream_synchronize(void* stream, qd_error* error) {
  return guarded(error, [&] { return device::synchronize(device::Stream{stream}); });
}

qd_result qd_event_create(void** event, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(event, "event"));
    *event = nullptr;
    QD_TRY(device::OwnedEvent made, device::OwnedEvent::create());
    *event = made.release().handle;
    return {};
  });
}

void qd_event_destroy(void* event) {
  (void)device::OwnedEvent::adopt({event});
}

qd_result qd_event_record(void* event, void* stream, qd_error* error) {
  return guarded(error, [&] { return device::record({event}, {stream}); });
}

qd_result qd_stream_wait_event(void* stream, void* event, qd_error* error) {
  return guarded(error, [&] { return device::wait({stream}, {event}); });
}

qd_result qd_stream_follow(void* stream, void* leader, qd_error* error) {
  return guarded(error, [&] { return device::follow({stream}, {leader}); });
}

qd_result qd_stream_captured(void* stream, int32_t* captured, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(captured, "captured"));
    *captured = 0;
    QD_TRY(const bool is_captured, device::capturing({stream}));
    *captured = is_captured ? 1 : 0;
    return {};
  });
}

qd_result qd_memory_allocate(size_t bytes, void* stream, void** memory, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(memory, "memory"));
    *memory = nullptr;
    QD_TRY(device::Buffer buffer, device::Buffer::allocate(bytes, {stream}));
    *memory = buffer.release();
    return {};
  });
}

void qd_memory_release(void* memory, void* stream) {
  const device::Allocator pool = device::default_allocator();
  if (memory != nullptr && pool.release != nullptr) pool.release(pool.context, memory, 0, {stream});
}

qd_result qd_copy_to_device(void* to, const void* host, size_t bytes, void* stream, qd_error* error) {
  return guarded(error, [&] { return device::copy_to_device(to, host, bytes, {stream}); });
}

qd_result qd_copy_to_host(void* host, const void* from, size_t bytes, void* stream, qd_error* error) {
  return guarded(error, [&] { return device::copy_to_host(host, from, bytes, {stream}); });
}

qd_result qd_memory_fill(void* memory, int32_t byte, size_t bytes, void* stream, qd_error* error) {
  return guarded(error, [&] { return device::fill(memory, static_cast<uint8_t>(byte), bytes, {stream}); });
}

}  // extern "C"
