// SPDX-License-Identifier: Apache-2.0
// One thread that looks at the GPU's clock.
#include "device_step/delay.h"

#include "kernels/cuda/launch.h"

namespace quadrille::testing {
namespace {

__device__ uint64_t global_nanoseconds() {
  uint64_t time = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

__global__ void delay_kernel(uint64_t nanoseconds) {
  const uint64_t begin = global_nanoseconds();
  while (global_nanoseconds() - begin < nanoseconds) __nanosleep(500);
}

}  // namespace

void delay(int64_t nanoseconds, device::Stream stream) {
  delay_kernel<<<1, 1, 0, kernels::cuda::native(stream)>>>(static_cast<uint64_t>(nanoseconds));
  kernels::cuda::check_launch("delay_kernel");
}

}  // namespace quadrille::testing
