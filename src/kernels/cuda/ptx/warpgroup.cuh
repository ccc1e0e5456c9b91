// SPDX-License-Identifier: Apache-2.0
// What a kernel of warpgroups needs beside wgmma: order between its own stores to shared memory and the tensor cores,
// registers that move from one warpgroup to another.
#pragma once

namespace quadrille::kernels::cuda::ptx {

// Orders this thread's writes to shared memory before reads by wgmma and the copy engine; a barrier follows.
__device__ __forceinline__ void fence_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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
