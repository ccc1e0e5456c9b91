// SPDX-License-Identifier: Apache-2.0
// What a cluster of cluster_singles.cuh works on, and where its arrays lie in shared memory.
#pragma once

#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/attention/block.cuh"

namespace quadrille::kernels::cuda {

template <int Dim>
struct ClusterRoom {
  static constexpr int kPitch = static_cast<int>(partial_pitch(Dim));  // floats of a block's result for a head
  static constexpr int kQueryPitch = query_pitch_bytes(Dim);
  static constexpr int kMaximaBytes = kGroupWarps * kClusterRows * 4, kWeightBytes = kClusterRows * kWeightPitch;
  // Barriers: of the results, then for each group of keys and of values. A word, then a word a warp.
  static constexpr int kBarriersAt = 0, kFlagAt = 128, kTopsAt = 132;
  static constexpr int kQueriesAt = 256;
  static constexpr int kFreshAt = kQueriesAt + kClusterRows * kQueryPitch;
  static constexpr int kGroupsAt = kFreshAt + 4 * Dim * 2;
  static constexpr int kTilesAt = cluster_tiles_at(Dim);
  static_assert(8 + 16 * kGroups <= kFlagAt && kTopsAt + 4 * kGroupWarps * kGroups <= kQueriesAt);
  static_assert(kGroupsAt + kGroups * (kMaximaBytes + kWeightBytes) <= kTilesAt);

  uint8_t* base;

  __device__ __forceinline__ uint32_t results_barrier() const { return ptx::shared_address(base); }
  __device__ __forceinline__ uint32_t key_barrier(int group) const { return results_barrier() + 8 + 16 * group; }
  __device__ __forceinline__ uint32_t value_barrier(int group) const { return key_barrier(group) + 8; }
  __device__ __forceinline__ uint16_t* query(int row) const {
    return reinterpret_cast<uint16_t*>(base + kQueriesAt + row * kQueryPitch);
  }
  __device__ __forceinline__ uint16_t* newest() const { return reinterpret_cast<uint16_t*>(base + kFreshAt); }
  // [warps, rows] largest scores of a warp's keys.
  __device__ __forceinline__ float* maxima(int group) const {
    return reinterpret_cast<float*>(base + kGroupsAt + group * (kMaximaBytes + kWeightBytes));
  }
  // The weights of a head's keys [64], bf16; the pitch keeps heads in banks of their own.
  __device__ __forceinline__ uint16_t* weights(int group, int head) const {
    return reinterpret_cast<uint16_t*>(base + kGroupsAt + group * (kMaximaBytes + kWeightBytes) + kMaximaBytes +
                                       head * kWeightPitch);
  }
  // [kFoldBlocks] of a warp that folds, where queries, maxima and weights were: a CTA folds when all of it has read
  // them.
  __device__ __forceinline__ float4* factors(int warp) const {
    constexpr int kWarps = kClusterRows / 2 * (Dim / 32);  // a warp has 32 dimensions of a row; clusters are 2 or more
    static_assert((kWarps < kGroups * kGroupWarps ? kWarps : kGroups * kGroupWarps) * 512 <= kTilesAt - kQueriesAt);
    return reinterpret_cast<float4*>(base + kQueriesAt) + warp * 32;
  }
  __device__ __forceinline__ uint8_t* tile(int group) const { return base + kTilesAt + group * Tile<Dim>::kBytes; }
  // [heads that this CTA folds, blocks, kPitch], behind the tiles.
  __device__ __forceinline__ float* results() const { return reinterpret_cast<float*>(tile(kGroups)); }
};

// Block i of the token belongs to CTA i % cluster, there to group i / cluster % kGroups. Head row r is folded by CTA
// r % cluster, which keeps its results in slot r / cluster.
struct ClusterWork {
  int32_t cluster, rank, single, kv;
  int32_t shift;  // cluster is 1 << shift
  int32_t count;  // of blocks
  int32_t fresh;  // positions up to the token's own that are of this step: 1 or 2
  int32_t token, position, first_block;
  int32_t first_key;     // position of the first key that it sees
  const int32_t* pages;  // of the blocks

  __device__ __forceinline__ explicit ClusterWork(const AttentionArguments& args)
      : cluster(static_cast<int32_t>(args.cluster)), rank(ptx::cluster_rank()) {
    const auto kv_heads = static_cast<uint32_t>(args.p.pages.num_kv_heads);
    shift = __ffs(cluster) - 1;
    const uint32_t item = blockIdx.x >> shift;
    single = static_cast<int32_t>(item / kv_heads);
    kv = static_cast<int32_t>(item % kv_heads);
    token = args.p.singles == nullptr ? single : args.p.singles[single];
    const int32_t before = token > 0 ? token - 1 : 0;
    position = args.p.position[token];
    const int32_t sequence = args.p.sequence[token];
    const bool is_pair = token > 0 && args.p.sequence[before] == sequence && args.p.position[before] >= 0;
    fresh = is_pair && position > 0 ? 2 : 1;
    const SeenKeys seen = seen_keys(position, args.p.window);
    const BlockRange blocks = seen_blocks(seen);
    first_key = static_cast<int32_t>(seen.first);
    first_block = static_cast<int32_t>(blocks.first);
    count = static_cast<int32_t>(blocks.count);
    pages = args.p.pages.table + sequence * args.p.pages.table_stride + first_block;
  }
  __device__ __forceinline__ int64_t head_at(const AttentionArguments& args, int row) const {
    return args.heads.head_at(kv, 0, row);
  }
  // Block of the position `back` before the token's; below 0: none that the token sees.
  __device__ __forceinline__ int block_of(int back) const { return (position - back) / kKeyBlock - first_block; }
  // Of a block, and of a row of the results; clusters are powers of two.
  __device__ __forceinline__ int owner_of(int i) const { return i & (cluster - 1); }
  // Whether the CTA has a block with a position of this step.
  __device__ __forceinline__ bool has_fresh() const {
    if (position < 0) return false;
    const int newest = block_of(0), older = block_of(fresh - 1);
    return owner_of(newest) == rank || (older >= 0 && owner_of(older) == rank);
  }
  __device__ __forceinline__ SeenPart in_block(int i) const {
    return seen_in_block({first_key, position}, first_block + i);
  }
};

}  // namespace quadrille::kernels::cuda
