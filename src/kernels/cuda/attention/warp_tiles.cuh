// SPDX-License-Identifier: Apache-2.0
// Attention of tiles (prefill) for heads above 128 dimensions, whose sums do not fit beside each other in the registers
// of a warpgroup: mma by warps. A CTA has 64 rows, each a token and a query head of one KV head; two warps share 16
// rows and take half of the dimensions each; the blocks of keys and values come through a ring that all warps read.
#pragma once

#include "kernels/cuda/attention/tile_item.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {

template <int Dim>
struct TilePlan {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSharers = Dim > 128 ? 2 : 1;  // warps that share 16 rows
  static constexpr int kRows = kWarps / kSharers * 16;
  static constexpr int kOutChunks = Tile<Dim>::kChunks / kSharers;
  static constexpr int kStages = Dim > 192 ? 3 : 4;
  static constexpr int kBarriersAt = kStages * Tile<Dim>::kBytes;
  static constexpr int kSharedBytes = kBarriersAt + 128;
};

// The ring of blocks: one thread fills it, every warp frees a stage when it has read it.
template <int Dim>
struct BlockRing {
  using Plan = TilePlan<Dim>;
  uint8_t* stages;
  const uint16_t* tile;  // of the KV head in page 0
  int64_t page_size;
  const int32_t* pages;  // of the blocks, from the first one on
  int64_t count;

  __device__ uint32_t full(int64_t i) const {
    return ptx::shared_address(stages + Plan::kBarriersAt) + static_cast<uint32_t>(i % Plan::kStages) * 8;
  }
  __device__ uint32_t empty(int64_t i) const { return full(i) + Plan::kStages * 8; }
  __device__ uint8_t* stage(int64_t i) const { return stages + i % Plan::kStages * Tile<Dim>::kBytes; }
  __device__ static uint32_t parity(int64_t i) { return static_cast<uint32_t>(i / Plan::kStages % 2); }

  // Thread 0.
  __device__ void init() const {
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::barrier_init(full(s), 1);
      ptx::barrier_init(empty(s), Plan::kWarps);
    }
    ptx::fence_barrier_init();
  }
  // Thread 0; the stage is free.
  __device__ void fetch(int64_t i, int32_t page) const {
    ptx::barrier_expect(full(i), Tile<Dim>::kBytes);
    ptx::bulk_copy(ptx::shared_address(stage(i)), tile + page * page_size, Tile<Dim>::kBytes, full(i));
  }
};

template <int Dim>
class TileRows {
 public:
  using Plan = TilePlan<Dim>;

  __device__ __forceinline__ TileRows(const AttentionArguments& args, const QueryTile& tile, int64_t kv,
                                      int64_t head_tile)
      : args_(args), lane_(static_cast<int>(threadIdx.x) % 32), warp_(static_cast<int>(threadIdx.x) / 32) {
    const int64_t head_dim = args.p.pages.head_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const TileRow row = tile_row(args, tile, kv, head_tile, warp_ / Plan::kSharers * 16 + r * 8 + lane_ / 4);
      row_[r] = row.token < 0 ? -1 : row.token * args.p.num_heads + row.head;
      first_[r] = static_cast<int>(row.seen.first);
      last_[r] = static_cast<int>(row.seen.last);
      queries_.load(r, row_[r] < 0 ? nullptr : args.p.q + row_[r] * head_dim, head_dim, lane_ % 4);
    }
#pragma unroll
    for (int c = 0; c < Plan::kOutChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 16; ++i) sum_[c][i / 4][i % 4] = 0.0f;
    }
  }

  // Block number `block` of the sequence.
  __device__ __forceinline__ void add(int64_t block, const uint8_t* tile) {
    float score[8][4];
    block_scores<Dim>(queries_, tile, lane_, score);
    SeenInBlock seen;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const SeenPart part = seen_in_block({first_[r], last_[r]}, block);
      seen.first[r] = part.first;
      seen.last[r] = part.last;
    }
    const bool whole = seen.first[0] == 0 && seen.first[1] == 0 && seen.last[0] == 63 && seen.last[1] == 63;
    const bool all_whole = __all_sync(kAllLanes, whole);
    if (!all_whole) hide_unseen(seen, lane_ % 4, score);
    Weights weights;
    block_weights(score, args_.scale2, weights);
    const bool sees[2] = {seen.first[0] <= seen.last[0], seen.first[1] <= seen.last[1]};
    Fold fold[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Running next = running_[r];
      fold[r] = fold_block(next, weights.top[r], weights.norm[r]);
      if (sees[r]) running_[r] = next;
    }
#pragma unroll
    for (int c = 0; c < Plan::kOutChunks; ++c) {
      float sum[4][4];
      block_values<Dim>(weights, tile, first_chunk() + c, lane_, sum);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float next = folded(sum_[c][i / 4][i % 4], fold[i % 4 / 2], sum[i / 4][i % 4]);
        if (all_whole || sees[i % 4 / 2]) sum_[c][i / 4][i % 4] = next;
      }
    }
  }

  __device__ __forceinline__ void store() const {
    const int64_t head_dim = args_.p.pages.head_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row_[r] < 0) continue;
      const bool padding = last_[r] < 0;
      uint16_t* out = args_.p.out + row_[r] * head_dim;
#pragma unroll
      for (int c = 0; c < Plan::kOutChunks; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int dim = 32 * (first_chunk() + c) + 8 * j + lane_ % 4 * 2;
          if (dim >= head_dim) continue;
          const float norm = running_[r].norm;
          const uint32_t pair = ptx::bf16_pair(sum_[c][j][2 * r] / norm, sum_[c][j][2 * r + 1] / norm);
          *reinterpret_cast<uint32_t*>(out + dim) = padding ? 0 : pair;
        }
      }
    }
  }

 private:
  __device__ __forceinline__ int first_chunk() const { return warp_ % Plan::kSharers * Plan::kOutChunks; }

  const AttentionArguments& args_;
  int lane_, warp_;
  int64_t row_[2];          // of q and out; -1: the row is not used
  int first_[2], last_[2];  // keys that it sees
  Queries<Dim> queries_;
  Running running_[2];
  float sum_[Plan::kOutChunks][4][4];
};

template <int Dim>
__global__ void __launch_bounds__(TilePlan<Dim>::kThreads, 1)
    warp_tiles_kernel(const __grid_constant__ AttentionArguments args) {
  using Plan = TilePlan<Dim>;
  extern __shared__ __align__(128) uint8_t shared[];
  const TileItem item(args, blockIdx.x);
  const BlockRange blocks = item.blocks;
  const int32_t* pages = item.pages;
  const layout::KvTile map{args.p.pages.num_kv_heads, args.p.pages.head_dim};
  const BlockRing<Dim> ring{shared, args.p.pages.data + item.kv * map.tile_size(), map.page_size(), pages,
                            blocks.count};

  if (threadIdx.x == 0) {
    ring.init();
    for (int64_t i = 0; i < Plan::kStages && i < blocks.count; ++i) ring.fetch(i, pages[i]);
  }
  __syncthreads();  // the barriers stand
  TileRows<Dim> rows(args, item.tile, item.kv, item.head_tile);
  // The page of the next refill is read one block ahead.
  int32_t next_page = threadIdx.x == 0 && Plan::kStages < blocks.count ? pages[Plan::kStages] : 0;
  for (int64_t i = 0; i < blocks.count; ++i) {
    // Refills the stage that was read two blocks ago: the other warps have had a block's time to leave it.
    const int64_t refill = i - 2 + Plan::kStages;
    if (threadIdx.x == 0 && i >= 2 && refill < blocks.count) {
      ptx::barrier_wait(ring.empty(refill), ring.parity(refill) ^ 1);  // pairs with the arrivals of all warps below
      ring.fetch(refill, next_page);
      if (refill + 1 < blocks.count) next_page = pages[refill + 1];
    }
    __syncwarp();
    ptx::barrier_wait(ring.full(i), ring.parity(i));
    uint8_t* stage = ring.stage(i);
    if (i == blocks.count - 1 && item.last_key() < kKeyBlock - 1) {
      clear_values_behind<Dim>(stage, item.last_key(), static_cast<int>(threadIdx.x), Plan::kThreads);
      __syncthreads();  // the last block is clean before any warp reads it; its stage is not filled again
    }
    rows.add(blocks.first + i, stage);
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(ring.empty(i));
  }
  rows.store();
}

template <int Dim>
void launch_warp_tiles(const AttentionArguments& args, device::Stream stream) {
  const cudaError_t allowed = cudaFuncSetAttribute(warp_tiles_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   TilePlan<Dim>::kSharedBytes);
  if (allowed != cudaSuccess) throw LaunchFailure(std::string("attention, tiles: ") + cudaGetErrorString(allowed));
  const auto grid = static_cast<unsigned>(args.p.num_tiles * args.head_pairs());
  warp_tiles_kernel<Dim><<<grid, TilePlan<Dim>::kThreads, TilePlan<Dim>::kSharedBytes, native(stream)>>>(args);
  check_launch("attention, tiles");
}

}  // namespace quadrille::kernels::cuda
