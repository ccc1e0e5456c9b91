// SPDX-License-Identifier: Apache-2.0
// Launching: the stream of a call as CUDA's type, and a refused launch as an exception. Kernels are started with
// <<<grid, block, shared, stream>>> and an explicit stream, always (tools/check_streams.py reads the source).
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "device/handles.h"

namespace quadrille::kernels::cuda {

class LaunchFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline cudaStream_t native(device::Stream stream) {
  if (stream.handle == nullptr) throw LaunchFailure("a null stream: the default stream is not used here");
  return static_cast<cudaStream_t>(stream.handle);
}

// Call after every launch: an illegal configuration or a broken device throws, naming the kernel.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw LaunchFailure(std::string(kernel) + ": " + cudaGetErrorString(error));
}

inline int ceil_div(int64_t a, int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

}  // namespace quadrille::kernels::cuda
