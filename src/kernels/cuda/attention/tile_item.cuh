// SPDX-License-Identifier: Apache-2.0
// What a CTA of a prefill works on: (tile of tokens, KV head, head tile), its rows and the key blocks that they see.
// Read by both kernels of tiles (warp_tiles.cuh, group_tiles.cuh).
#pragma once

#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/attention/block.cuh"

namespace quadrille::kernels::cuda {

// The row's token, head and what it sees; token -1: the row is not used.
struct TileRow {
  int64_t token = -1;
  int64_t head = -1;
  SeenKeys seen = {0, -1};
};
__device__ __forceinline__ TileRow tile_row(const AttentionArguments& args, const QueryTile& tile, int64_t kv,
                                            int64_t head_tile, int row) {
  TileRow found;
  const int packed = static_cast<int>(args.heads.packed());
  const int64_t head = args.heads.head_at(kv, head_tile, row % packed);
  if (row / packed >= tile.num_tokens || head < 0) return found;
  found.token = tile.first_token + row / packed;
  found.head = head;
  found.seen = seen_keys(args.p.position[found.token], args.p.window);
  return found;
}

// The blocks that any token of the tile sees; every thread of every warp gets the same.
__device__ __forceinline__ SeenKeys seen_by_tile(const AttentionArguments& args, const QueryTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int first = 0x7fffffff, last = -1;
  for (int i = lane; i < tile.num_tokens; i += 32) {
    const SeenKeys seen = seen_keys(args.p.position[tile.first_token + i], args.p.window);
    if (seen.last < seen.first) continue;
    first = min(first, static_cast<int>(seen.first));
    last = max(last, static_cast<int>(seen.last));
  }
  first = __reduce_min_sync(kAllLanes, first);
  last = __reduce_max_sync(kAllLanes, last);
  if (last < 0) return {0, -1};
  return {first, last};
}

// Item i of a launch: later tiles of the step first, which see most. Whole warps build it.
struct TileItem {
  QueryTile tile;
  int64_t kv, head_tile;
  SeenKeys seen;
  BlockRange blocks;
  const int32_t* pages;  // of the blocks, from the first one on

  __device__ __forceinline__ TileItem(const AttentionArguments& args, int64_t item) {
    // In 32 bits: a launch has fewer than 2^22 items.
    const auto pairs = static_cast<uint32_t>(args.head_pairs()), head_tiles = static_cast<uint32_t>(args.heads.tiles());
    const auto own = static_cast<uint32_t>(item);
    tile = args.p.tiles[args.p.num_tiles - 1 - own / pairs];
    kv = own % pairs / head_tiles;
    head_tile = own % head_tiles;
    seen = seen_by_tile(args, tile);
    blocks = seen_blocks(seen);
    pages = args.p.pages.table + args.p.sequence[tile.first_token] * args.p.pages.table_stride + blocks.first;
  }
  // Keys of the last block that some row sees: 63 where it is full.
  __device__ __forceinline__ int last_key() const {
    return static_cast<int>(seen.last - (blocks.first + blocks.count - 1) * kKeyBlock);
  }
};

}  // namespace quadrille::kernels::cuda
