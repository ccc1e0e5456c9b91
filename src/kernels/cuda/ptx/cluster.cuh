// SPDX-License-Identifier: Apache-2.0
// CTAs of a cluster: a word into another one's shared memory. cluster_sync() in ptx/barrier.cuh orders it.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// To the same place of CTA `rank` of the cluster.
__device__ __forceinline__ void store_in(uint32_t shared, int rank, uint32_t value) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.u32 [remote], %2;\n}\n" ::"r"(shared),
      "r"(rank), "r"(value)
      : "memory");
}

}  // namespace quadrille::kernels::cuda::ptx
