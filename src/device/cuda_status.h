// SPDX-License-Identifier: Apache-2.0
// What the CUDA files of this folder share: a CUDA error as a Status, handles as CUDA's types.
#pragma once

#include <cuda_runtime_api.h>

#include "device/device.h"

namespace quadrille::device {

// Takes the error out of the thread's last-error slot, so that a later launch is not blamed for it.
inline Status cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();
  const ErrorCode code =
      error == cudaErrorMemoryAllocation ? ErrorCode::kCapacity
      : error == cudaErrorInvalidValue || error == cudaErrorInvalidResourceHandle || error == cudaErrorInvalidDevice
          ? ErrorCode::kInvalidArgument
          : ErrorCode::kIo;
  return make_error(code, "{}: {} ({})", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

inline cudaStream_t native(Stream stream) {
  return static_cast<cudaStream_t>(stream.handle);
}
inline cudaEvent_t native(Event event) {
  return static_cast<cudaEvent_t>(event.handle);
}

}  // namespace quadrille::device
