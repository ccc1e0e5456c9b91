// SPDX-License-Identifier: Apache-2.0
// What a CTA of singles.cuh works on, and the heads that it makes where the problem has a projection.
#pragma once

#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/attention/block.cuh"
#include "kernels/cuda/attention/fresh_heads.cuh"

namespace quadrille::kernels::cuda {

// What a CTA works on: its token, KV head and heads, and its part of the token's blocks.
struct SingleWork {
  int32_t single, kv, head_tile, part;
  int64_t token, position;
  SeenKeys seen;
  BlockRange blocks;   // of the token
  int32_t length;      // blocks of a CTA
  int32_t begin, end;  // of this one, counted from blocks.first
  bool is_spread;

  __device__ __forceinline__ explicit SingleWork(const AttentionArguments& args) {
    // A division of 64 bits takes some hundred clocks, and everything waits for these.
    const auto parts = static_cast<uint32_t>(args.parts), tiles = static_cast<uint32_t>(args.heads.tiles());
    const auto pairs = static_cast<uint32_t>(args.head_pairs());
    const uint32_t item = blockIdx.x / parts;
    part = blockIdx.x % parts;
    single = item / pairs;
    kv = item % pairs / tiles;
    head_tile = item % tiles;
    token = args.p.singles == nullptr ? single : args.p.singles[single];
    position = args.p.position[token];
    seen = seen_keys(position, args.p.window);
    blocks = seen_blocks(seen);
    length = blocks_of_part(static_cast<uint32_t>(blocks.count), parts, static_cast<uint32_t>(args.least));
    if (blocks.count > args.most_blocks) length = blocks.count;
    is_spread = length < blocks.count;
    begin = part * length < blocks.count ? part * length : blocks.count;
    end = begin + length < blocks.count ? begin + length : blocks.count;
  }
  __device__ __forceinline__ int64_t head_at(const AttentionArguments& args, int64_t place) const {
    return args.heads.head_at(kv, head_tile, place);
  }
  __device__ __forceinline__ SeenInBlock in_block(int64_t i) const {
    const SeenPart part = seen_in_block(seen, blocks.first + i);
    return {{part.first, part.first}, {part.last, part.last}};
  }
  // Positions of block i up to the token's own.
  __device__ __forceinline__ int rows_of(int64_t i) const {
    const int64_t rows = position + 1 - (blocks.first + i) * kKeyBlock;
    return rows < kKeyBlock ? static_cast<int>(rows) : kKeyBlock;
  }
  // The first position of block i that may be of this step, whose tokens of one sequence are kLongestSingles at most;
  // kKeyBlock or more: none.
  __device__ __forceinline__ int fresh_from(int64_t i) const {
    const int64_t from = position - (kLongestSingles - 1) - (blocks.first + i) * kKeyBlock;
    return from < 0 ? 0 : static_cast<int>(from);
  }
  // Whether the CTA's cluster has blocks of a single that is spread.
  __device__ __forceinline__ bool cluster_works(const AttentionArguments& args) const {
    return (part & ~(args.cluster - 1)) * length < blocks.count;
  }
  // In its cluster, of a power of two.
  __device__ __forceinline__ int64_t rank(const AttentionArguments& args) const { return part & (args.cluster - 1); }
  __device__ __forceinline__ int64_t clusters(const AttentionArguments& args) const {
    const auto blocks_of_cluster = static_cast<uint32_t>(args.cluster * length);
    return (static_cast<uint32_t>(blocks.count) + blocks_of_cluster - 1) / blocks_of_cluster;
  }
};

// The heads that the CTA makes: query rows where results come later, newest keys and values behind them.
template <int Dim>
__device__ __forceinline__ FreshPlaces fresh_places(const AttentionArguments& args, const SingleWork& work,
                                                    uint16_t* partials, int warps) {
  const bool has_blocks = work.begin < work.end;
  const int64_t before = work.token > 0 ? work.token - 1 : 0;
  const bool is_pair = work.token > 0 && work.position > 0 && args.p.position[before] >= 0 &&
                       args.p.sequence[before] == args.p.sequence[work.token];
  FreshPlaces places{work.token, has_blocks ? work.position : -1, work.kv, work.head_tile, is_pair ? 2 : 1};
  places.has_fresh = has_blocks && work.fresh_from(work.end - 1) < kKeyBlock;
  const bool has_own = has_blocks && work.end == work.blocks.count && work.head_tile == 0;
  const int64_t sequence = args.p.sequence[work.token];
  places.page = has_own ? args.p.pages.table[sequence * args.p.pages.table_stride + work.position / kKeyBlock] : -1;
  places.own_tile = places.previous_tile = nullptr;
  places.query_pitch = query_pitch_bytes(Dim) / 2;
  places.query = partials;
  places.newest = partials + 2 * static_cast<int>(warps * args.rows * partial_pitch(Dim));
  return places;
}

}  // namespace quadrille::kernels::cuda
