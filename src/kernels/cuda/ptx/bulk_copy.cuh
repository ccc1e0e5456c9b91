// SPDX-License-Identifier: Apache-2.0
// Copies by the bulk engine, global -> shared, completing on an mbarrier. Issued by one thread.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

// `bytes` a multiple of 16, both addresses 16-byte aligned.
__device__ __forceinline__ void bulk_copy(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}

// The box at (x, y) of a 2-D tensor map; elements outside of the tensor arrive as zeros and count as bytes.
__device__ __forceinline__ void tensor_copy(uint32_t shared, const CUtensorMap* map, int32_t x, int32_t y,
                                            uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same, into the same place of every CTA of the cluster that `mask` names, completing on the barrier of each.
__device__ __forceinline__ void tensor_copy_multicast(uint32_t shared, const CUtensorMap* map, int32_t x, int32_t y,
                                                      uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, "
      "%3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
      : "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace quadrille::kernels::cuda::ptx
