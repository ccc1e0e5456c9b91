// SPDX-License-Identifier: Apache-2.0
// One block walks over all experts: running sums of rows and tiles, the tile list, its length. Used by the kernels of
// plan_routes.cu and plan_masked.cu, which say how many rows an expert has and where they begin.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe/plan_logic.h"

namespace quadrille::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

struct RowsTiles {
  int32_t rows;
  int32_t tiles;
};
__device__ __forceinline__ RowsTiles operator+(RowsTiles a, RowsTiles b) {
  return {a.rows + b.rows, a.tiles + b.tiles};
}

__device__ __forceinline__ RowsTiles warp_inclusive(RowsTiles own, int lane) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const RowsTiles other = {__shfl_up_sync(kAllLanes, own.rows, distance),
                             __shfl_up_sync(kAllLanes, own.tiles, distance)};
    if (lane >= distance) own = own + other;
  }
  return own;
}

// Sums over all threads with a lower number, and over all. `warp_sums` [32] shared. All threads of the block call it.
__device__ __forceinline__ RowsTiles block_exclusive(RowsTiles own, RowsTiles* warp_sums, RowsTiles* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int num_warps = static_cast<int>(blockDim.x) / kWarp;
  const RowsTiles inclusive = warp_inclusive(own, lane);
  __syncthreads();  // pairs with the one below: the readers of an earlier call are done
  if (lane == kWarp - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  const RowsTiles of_warp = lane < num_warps ? warp_sums[lane] : RowsTiles{0, 0};
  const RowsTiles sums = warp_inclusive(of_warp, lane);
  *total = {__shfl_sync(kAllLanes, sums.rows, kWarp - 1), __shfl_sync(kAllLanes, sums.tiles, kWarp - 1)};
  const int before = warp == 0 ? 0 : warp - 1;
  RowsTiles at = {__shfl_sync(kAllLanes, sums.rows, before), __shfl_sync(kAllLanes, sums.tiles, before)};
  if (warp == 0) at = {0, 0};
  return at + RowsTiles{inclusive.rows - own.rows, inclusive.tiles - own.tiles};
}

__device__ __forceinline__ void store_tile(TokenTile* tiles, int32_t place, const TokenTile& tile) {
  int4* out = reinterpret_cast<int4*>(tiles + place);
  out[0] = make_int4(tile.expert, tile.first_row, tile.num_rows, tile.first_tile);
  out[1] = make_int4(tile.num_tiles, 0, 0, 0);
}

// Each lane brings one expert (num_tiles 0: none). A few tiles are written by their own lane, many by the whole warp.
__device__ __forceinline__ void store_tiles(int32_t expert, int32_t first_row, RowsTiles own, int32_t first_tile,
                                            int32_t tile_tokens, TokenTile* tiles) {
  constexpr int32_t kOwnTiles = 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int32_t i = 0; i < own.tiles && own.tiles <= kOwnTiles; ++i) {
    store_tile(tiles, first_tile + i, token_tile(expert, first_row, own.rows, first_tile, tile_tokens, i));
  }
  unsigned waiting = __ballot_sync(kAllLanes, own.tiles > kOwnTiles);
  while (waiting != 0) {
    const int source = __ffs(static_cast<int>(waiting)) - 1;
    waiting &= waiting - 1;
    const int32_t of_expert = __shfl_sync(kAllLanes, expert, source);
    const int32_t row = __shfl_sync(kAllLanes, first_row, source);
    const int32_t rows = __shfl_sync(kAllLanes, own.rows, source);
    const int32_t tile = __shfl_sync(kAllLanes, first_tile, source);
    const int32_t count = __shfl_sync(kAllLanes, own.tiles, source);
    for (int32_t i = lane; i < count; i += kWarp) {
      store_tile(tiles, tile + i, token_tile(of_expert, row, rows, tile, tile_tokens, i));
    }
  }
}

// Source: rows(e) -> rows of expert e; place(e, rows_before) -> its first row; finish(all rows), called by one thread.
// All threads of the block call it. rows(e + 1) of a round is read before place(e) of the same round is called.
template <typename Source>
__device__ __forceinline__ void list_experts(const Source& source, int64_t num_experts, int32_t tile_tokens,
                                             TokenTile* tiles, int32_t* num_tiles, RowsTiles* warp_sums) {
  RowsTiles before = {0, 0};
  for (int64_t first = 0; first < num_experts; first += blockDim.x) {
    const int64_t e = first + threadIdx.x;
    RowsTiles own = {0, 0};
    if (e < num_experts) own.rows = source.rows(e);
    own.tiles = tiles_of_rows(own.rows, tile_tokens);
    RowsTiles total;
    const RowsTiles at = before + block_exclusive(own, warp_sums, &total);
    const int32_t first_row = e < num_experts ? source.place(e, at.rows) : 0;
    store_tiles(static_cast<int32_t>(e), first_row, own, at.tiles, tile_tokens, tiles);
    before = before + total;
  }
  if (threadIdx.x == 0) {
    *num_tiles = before.tiles;
    source.finish(before.rows);
  }
}

}  // namespace quadrille::kernels::cuda
