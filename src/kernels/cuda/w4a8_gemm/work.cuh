// SPDX-License-Identifier: Apache-2.0
// The walk over the work of one launch: every CTA takes items blockIdx.x, + gridDim.x, ...; producer and consumers walk
// alike; the CTAs of a cluster take the same item and neighbouring tiles of out features. Items of one expert are
// neighbours, token tiles innermost: CTAs that need the same weights run together.
#pragma once

#include "kernels/cuda/w4a8_gemm/config.h"

namespace quadrille::kernels::cuda {

struct WorkItem {
  int32_t expert;
  int32_t first_row;  // of the activations
  int32_t num_rows;   // 1..tile tokens
  int32_t row_tile;   // tile of out features; may lie behind the last one in a cluster
};

template <typename Plan>
struct WorkList {
  const GemmArguments& args;
  int32_t row_tiles;  // of a whole cluster
  int32_t num_items;  // the host has checked that it fits

  __device__ explicit WorkList(const GemmArguments& a) : args(a) {
    constexpr int kBlocks = Plan::kWarpgroups * Plan::kCluster;
    row_tiles = (a.row_blocks + kBlocks - 1) / kBlocks;
    const int64_t tiles =
        a.list.tiles != nullptr ? *a.list.num_tiles : (a.list.num_rows + Plan::kTokens - 1) / Plan::kTokens;
    num_items = static_cast<int32_t>(tiles * row_tiles) * (a.list.tiles != nullptr ? a.parts : 1);
  }

  __device__ WorkItem at(int32_t item) const {
    if (args.list.tiles == nullptr) {
      const int32_t tiles = num_items / row_tiles;
      const int64_t first = static_cast<int64_t>(item % tiles) * Plan::kTokens;
      const int64_t left = args.list.num_rows - first;
      return {0, static_cast<int32_t>(first), static_cast<int32_t>(left < Plan::kTokens ? left : Plan::kTokens),
              own_tile(item / tiles)};
    }
    if (args.parts > 1) return part_at(item);
    return listed(item);
  }

  __device__ static int32_t first_item() { return static_cast<int32_t>(blockIdx.x) / Plan::kCluster; }
  __device__ static int32_t item_stride() { return static_cast<int32_t>(gridDim.x) / Plan::kCluster; }

 private:
  // May have no rows.
  __device__ WorkItem part_at(int32_t item) const {
    WorkItem w = listed(item / args.parts);
    const int32_t first = item % args.parts * Plan::kTokens;
    w.first_row += first;
    w.num_rows = max(0, min(w.num_rows - first, Plan::kTokens));
    return w;
  }

  __device__ __forceinline__ WorkItem listed(int32_t item) const {
    // The items of an expert fill whole rows of the (tile, row tile) rectangle of its tiles, so any of them names it.
    const TokenTile& near = args.list.tiles[item / row_tiles];
    const int32_t local = item - near.first_tile * row_tiles;
    const TokenTile& tile = args.list.tiles[near.first_tile + local % near.num_tiles];
    return {tile.expert, tile.first_row, tile.num_rows, own_tile(local / near.num_tiles)};
  }

  __device__ static int32_t own_tile(int32_t cluster_tile) {
    return cluster_tile * Plan::kCluster + static_cast<int32_t>(blockIdx.x) % Plan::kCluster;
  }
};

// Place in the ring of stages; producer and consumers advance in step.
template <int Stages>
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;
  __device__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace quadrille::kernels::cuda
