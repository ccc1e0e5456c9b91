// SPDX-License-Identifier: Apache-2.0
// Room for one block of keys and values of a KV head in shared memory, filled by the bulk engine, a half at a time.
// Called by the kernels of singles (singles.cuh, cluster_singles.cuh).
#pragma once

#include "kernels/cuda/attention/block.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"

namespace quadrille::kernels::cuda {

// Filled again half by half as soon as it has been read.
template <int Dim>
struct BlockBuffer {
  uint8_t* tile;
  uint32_t key_barrier;
  uint32_t value_barrier;
  const uint16_t* pool;  // tile of the KV head in page 0
  int64_t page_size;

  // One thread; the half is free.
  __device__ void fetch_keys(int32_t page) const { fetch(page, 0, key_barrier); }
  __device__ void fetch_values(int32_t page) const { fetch(page, Tile<Dim>::kKeyBytes, value_barrier); }

 private:
  __device__ void fetch(int32_t page, int offset, uint32_t barrier) const {
    ptx::barrier_expect(barrier, Tile<Dim>::kKeyBytes);
    ptx::bulk_copy(ptx::shared_address(tile + offset), pool + page * page_size + offset / 2, Tile<Dim>::kKeyBytes,
                   barrier);
  }
};

}  // namespace quadrille::kernels::cuda
