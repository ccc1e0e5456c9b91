// SPDX-License-Identifier: Apache-2.0
// Stores into the shared memory of a CTA of the cluster (shared::cluster addresses) that complete on an mbarrier of the
// same CTA, and the fence between ordinary stores and readers of the asynchronous proxy.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// 16 bytes.
__device__ __forceinline__ void store_remote(uint32_t address, float a, float b, float c, float d, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}

// 4 bytes.
__device__ __forceinline__ void store_remote(uint32_t address, uint32_t word, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(address),
               "r"(word), "r"(barrier)
               : "memory");
}

// Ordinary stores of this thread to shared memory before wgmma or copies that read them; a barrier of the threads
// follows.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace quadrille::kernels::cuda::ptx
