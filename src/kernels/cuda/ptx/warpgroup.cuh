// SPDX-License-Identifier: Apache-2.0
// What a kernel of warpgroups needs beside wgmma: order between its own stores to shared memory and the tensor cores,
// registers that move from one warpgroup to another.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// Orders this thread's writes to shared memory before reads by wgmma and the copy engine; a barrier follows.
__device__ __forceinline__ void fence_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Whether the phase with that parity has completed, without waiting for it (barrier.cuh).
__device__ __forceinline__ bool barrier_passed(uint32_t barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(passed)
      : "r"(barrier), "r"(parity)
      : "memory");
  return passed != 0;
}

// Registers of a thread from here on, a multiple of 8; every thread of a warpgroup. Gives some back, or waits until
// there are as many.
template <int Count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

}  // namespace quadrille::kernels::cuda::ptx
