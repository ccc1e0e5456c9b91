// SPDX-License-Identifier: Apache-2.0
// Which GPUs there are, and their streams and events.
#include "device/cuda_status.h"
#include "device/follow.h"

namespace quadrille::device {
namespace {

// 0 without a driver. The runtime library finds the driver here, at the first call.
Result<int> driver_version() {
  int version = 0;
  QD_TRY_STATUS(cuda_status(cudaDriverGetVersion(&version), "asking for the driver's version"));
  if (version != 0) return version;
  return make_error(ErrorCode::kUnsupported,
                    "no GPU: expected an NVIDIA driver for CUDA {}.0 or newer (libcuda.so.1), found none: run on a "
                    "machine with a Hopper GPU and its driver",
                    CUDART_VERSION / 1000);
}

Result<int> attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  QD_TRY_STATUS(cuda_status(cudaDeviceGetAttribute(&value, which, ordinal), "asking for a GPU's properties"));
  return value;
}

// Free memory needs the GPU to be the thread's own for a moment.
Status read_memory(int ordinal, Properties* p) {
  int before = 0;
  QD_TRY_STATUS(cuda_status(cudaGetDevice(&before), "asking for the thread's GPU"));
  QD_TRY_STATUS(use(ordinal));
  const Status asked = cuda_status(cudaMemGetInfo(&p->free_bytes, &p->total_bytes), "asking for a GPU's memory");
  if (before != ordinal) QD_TRY_STATUS(use(before));
  return asked;
}

}  // namespace

Result<int> count() {
  QD_TRY(const int version, driver_version());
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  if (error == cudaErrorInsufficientDriver) {
    (void)cudaGetLastError();
    Properties old;
    old.driver_version = version;
    old.major = 9;
    QD_TRY_STATUS(check_properties(old));
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && found == 0)) {
    (void)cudaGetLastError();
    return make_error(ErrorCode::kUnsupported,
                      "no GPU: expected a Hopper GPU, found a driver and no GPU: check nvidia-smi and "
                      "CUDA_VISIBLE_DEVICES");
  }
  QD_TRY_STATUS(cuda_status(error, "counting GPUs"));
  return found;
}

Result<Properties> properties(int ordinal) {
  QD_TRY(const int found, count());
  if (ordinal < 0 || ordinal >= found) {
    return make_error(ErrorCode::kInvalidArgument, "GPU {}: expected 0..{}, as many as CUDA_VISIBLE_DEVICES shows",
                      ordinal, found - 1);
  }
  Properties p;
  cudaDeviceProp all{};
  QD_TRY_STATUS(cuda_status(cudaGetDeviceProperties(&all, ordinal), "asking for a GPU's properties"));
  p.name = all.name;
  QD_TRY(p.driver_version, driver_version());
  QD_TRY(p.major, attribute(cudaDevAttrComputeCapabilityMajor, ordinal));
  QD_TRY(p.minor, attribute(cudaDevAttrComputeCapabilityMinor, ordinal));
  QD_TRY(p.num_sms, attribute(cudaDevAttrMultiProcessorCount, ordinal));
  QD_TRY(const int l2, attribute(cudaDevAttrL2CacheSize, ordinal));
  p.l2_bytes = static_cast<size_t>(l2);
  QD_TRY_STATUS(read_memory(ordinal, &p));
  return p;
}

Status use(int ordinal) {
  QD_TRY_STATUS(count());
  return cuda_status(cudaSetDevice(ordinal), "choosing a GPU");
}

Result<OwnedStream> OwnedStream::create() {
  cudaStream_t stream = nullptr;
  QD_TRY_STATUS(cuda_status(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream"));
  return OwnedStream(Stream{stream});
}
OwnedStream::~OwnedStream() {
  if (stream_.handle != nullptr) (void)cudaStreamDestroy(native(stream_));
}

Result<OwnedEvent> OwnedEvent::create(bool timed) {
  cudaEvent_t event = nullptr;
  const unsigned flags = timed ? cudaEventDefault : cudaEventDisableTiming;
  QD_TRY_STATUS(cuda_status(cudaEventCreateWithFlags(&event, flags), "creating an event"));
  return OwnedEvent(Event{event});
}
OwnedEvent::~OwnedEvent() {
  if (event_.handle != nullptr) (void)cudaEventDestroy(native(event_));
}

namespace {
Status check_event(Event event) {
  if (event.handle != nullptr) return {};
  return make_error(ErrorCode::kInvalidArgument, "expected an event, found a null handle: create one first");
}
}  // namespace

Status record(Event event, Stream stream) {
  QD_TRY_STATUS(check_event(event));
  QD_TRY_STATUS(check_stream(stream));
  return cuda_status(cudaEventRecord(native(event), native(stream)), "recording an event");
}
Status wait(Stream stream, Event event) {
  QD_TRY_STATUS(check_event(event));
  QD_TRY_STATUS(check_stream(stream));
  return cuda_status(cudaStreamWaitEvent(native(stream), native(event), 0), "waiting for an event");
}
Result<int> current() {
  int ordinal = 0;
  QD_TRY_STATUS(cuda_status(cudaGetDevice(&ordinal), "asking for the thread's GPU"));
  return ordinal;
}
Status follow(Stream stream, Stream leader) {
  if (stream.handle == leader.handle) return {};
  QD_TRY(const OwnedEvent reached_here, OwnedEvent::create());
  QD_TRY_STATUS(cuda_status(cudaEventRecord(native(reached_here.get()), native(leader)), "recording an event"));
  return cuda_status(cudaStreamWaitEvent(native(stream), native(reached_here.get()), 0), "waiting for an event");
}
Status synchronize(Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  return cuda_status(cudaStreamSynchronize(native(stream)), "waiting for a stream's work");
}
Status synchronize(Event event) {
  QD_TRY_STATUS(check_event(event));
  return cuda_status(cudaEventSynchronize(native(event)), "waiting for an event's work");
}
Result<float> elapsed_ms(Event begin, Event end) {
  QD_TRY_STATUS(check_event(begin));
  QD_TRY_STATUS(check_event(end));
  float ms = 0;
  QD_TRY_STATUS(cuda_status(cudaEventElapsedTime(&ms, native(begin), native(end)), "reading the time of two events"));
  return ms;
}

Result<bool> reached(Event event) {
  QD_TRY_STATUS(check_event(event));
  // A query is refused in a thread that captures, unless the thread is relaxed meanwhile.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  QD_TRY_STATUS(cuda_status(cudaThreadExchangeStreamCaptureMode(&mode), "asking for an event"));
  const cudaError_t found = cudaEventQuery(native(event));
  QD_TRY_STATUS(cuda_status(cudaThreadExchangeStreamCaptureMode(&mode), "asking for an event"));
  if (found == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  QD_TRY_STATUS(cuda_status(found, "asking for an event"));
  return true;
}
Result<bool> capturing(Stream stream) {
  QD_TRY_STATUS(check_stream(stream));
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  QD_TRY_STATUS(cuda_status(cudaStreamIsCapturing(native(stream), &status), "asking for a stream's capture"));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace quadrille::device
