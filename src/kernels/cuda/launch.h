// SPDX-License-Identifier: Apache-2.0
// Launching: the stream of a call as CUDA's type, and a refused launch as an exception. Kernels are started with
// <<<grid, block, shared, stream>>> or launch_chained() and an explicit stream, always (tools/check_streams.py reads
// the source).
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

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

// What every chained kernel asks for: all that can be shared memory. A multiprocessor changes its split between L1 and
// shared memory only when it is empty, so a small kernel that asks for less than its neighbours starts when they have
// ended, and they when it has: nothing overlaps (routing behind a product, H100: 7.0 us instead of 5.3).
inline cudaLaunchAttribute all_shared_memory() {
  cudaLaunchAttribute split{};
  split.id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  split.val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  return split;
}

// Starts a kernel whose CTAs may come up while the stream's kernel before it still runs (programmatic dependent
// launch, an edge of its own kind in a captured graph). For kernels that keep the rule of ptx/chain.cuh and no others.
template <typename... Parameters, typename... Arguments>
void launch_chained(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                    Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1] = all_shared_memory();
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  if (cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...) != cudaSuccess) {
    check_launch("a chained launch");
  }
}

inline int ceil_div(int64_t a, int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

}  // namespace quadrille::kernels::cuda
