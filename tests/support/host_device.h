// SPDX-License-Identifier: Apache-2.0
// A GPU made of host memory and threads, with the functions of src/device: properties as a test wants them, memory of a
// given size that counts what is taken, and streams that run on threads of their own, so that work whose order nobody
// asked for happens out of order. A program that links it takes its functions instead of those of the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "device/device.h"

namespace quadrille::device {

struct HostGpu {
  // What device::properties() says of each GPU; free_bytes is computed. All share one memory.
  Properties properties;
  int num_gpus = 1;
  // The compute capability of the last one; 0: as the others.
  int major_of_last = 0;
  // The allocation of this number fails, counted from 0; -1: none but those that do not fit.
  int64_t failing_allocation = -1;

  // Counted since reset_host_gpu().
  int64_t num_allocations = 0;
  size_t taken_bytes = 0, peak_bytes = 0;
  int64_t num_copies_to_device = 0;
  size_t bytes_to_device = 0;
  // Alive now.
  int64_t num_buffers = 0, num_pinned = 0, num_streams = 0, num_events = 0;
};

// An H100 of `bytes` and a driver that runs this build, with nothing counted.
void reset_host_gpu(size_t bytes);
// Read and changed between calls of the code under test.
HostGpu& host_gpu();
// "": nothing of the GPU is alive.
std::string left_on_host_gpu();

// Puts work of a made-up kernel on a stream.
void enqueue_on_host(Stream stream, std::function<void()> work);

}  // namespace quadrille::device
