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

  // One thread; the half is free. rows: positions that anybody sees, the first ones of the page; what lies behind them
  // stays as it is.
  __device__ void fetch_keys(int32_t page, int rows = kKeyBlock) const { fetch(page, 0, rows, key_barrier); }
  __device__ void fetch_values(int32_t page, int rows = kKeyBlock) const {
    fetch(page, Tile<Dim>::kKeyBytes, rows, value_barrier);
  }

  __device__ void fetch_block(int32_t page, int rows = kKeyBlock) const {
    fetch_keys(page, rows);
    fetch_values(page, rows);
  }

 private:
  __device__ void fetch(int32_t page, int offset, int rows, uint32_t barrier) const {
    constexpr uint32_t kChunk = layout::KvTile::kChunkSize * 2;
    const uint32_t to = ptx::shared_address(tile + offset);
    const uint16_t* from = pool + page * page_size + offset / 2;
    if (rows == kKeyBlock) {
      ptx::barrier_expect(barrier, Tile<Dim>::kKeyBytes);
      ptx::bulk_copy(to, from, Tile<Dim>::kKeyBytes, barrier);
      return;
    }
    const uint32_t bytes = static_cast<uint32_t>(rows) * (kChunk / kKeyBlock);
    ptx::barrier_expect(barrier, bytes * (Dim / 32));
#pragma unroll 1
    for (uint32_t c = 0; c < Dim / 32; ++c) {
      ptx::bulk_copy(to + c * kChunk, from + c * (kChunk / 2), bytes, barrier);
    }
  }
};

}  // namespace quadrille::kernels::cuda
