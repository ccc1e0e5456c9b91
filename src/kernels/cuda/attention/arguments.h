// SPDX-License-Identifier: Apache-2.0
// What the attention kernels are launched with, and the launches that one unit a head dimension instantiates.
#pragma once

#include "device/handles.h"
#include "kernels/api/device_decoder_problems.h"
#include "kernels/cuda/attention/spread.h"

namespace quadrille::kernels::cuda {

struct AttentionArguments {
  DeviceAttention p;
  HeadTiles heads;
  float scale2;         // softmax scale * log2(e)
  int64_t parts;        // CTAs that the blocks of a single may be spread over: a multiple of `cluster`
  int64_t cluster;      // CTAs that fold together: 1, 2, 4 or 8
  int64_t least;        // blocks that a CTA has at least where they are spread
  int64_t most_blocks;  // of a single, in the workspace
  int32_t rows;         // of a partial result in shared memory: 8 or 16

  QD_HD int64_t head_pairs() const { return p.pages.num_kv_heads * heads.tiles(); }
  // Of a single: one a (KV head, head tile), then one of its row.
  QD_HD int32_t* counters_of(int64_t single) const { return p.counters + single * (head_pairs() + 1); }
};

// Shared memory of a CTA for singles with `warps` warps.
inline constexpr int64_t singles_shared_bytes(int64_t padded_dim, int64_t warps, int64_t rows) {
  return 128 + warps * (4 * kKeyBlock * padded_dim + rows * partial_pitch(padded_dim) * 4);
}

// Whether a CTA may make the heads of its projection itself (fresh_heads.cuh): all dimensions rotated or none, no clip,
// a norm of each head or none.
inline bool makes_fresh_heads(const DeviceQkv& p) {
  const int64_t dim = p.pages.head_dim;
  return (dim == 32 || dim == 64 || dim == 128) && (p.rotary_dim == dim || p.rotary_dim == 0) && p.clip == 0.0f &&
         p.norm != HeadNorm::kWholeProjection;
}

// A cluster to a KV head: query heads of it at most, warps that share a block, such groups of a CTA.
inline constexpr int kClusterRows = 8;
inline constexpr int kGroupWarps = 4;
inline constexpr int kGroups = 3;
inline constexpr int kWeightPitch = 2 * kKeyBlock + 16;  // bytes between the weights of two heads
// Bytes between rows of queries in shared memory: eight lanes that read pieces of two rows meet every bank once.
inline constexpr int query_pitch_bytes(int padded_dim) {
  return padded_dim * 2 + (padded_dim * 2 % 128 == 0 ? 64 : 0);
}
// Bytes in front of the tiles: barriers and words, query rows, four rows of fresh keys and values, maxima and weights.
inline constexpr int cluster_tiles_at(int padded_dim) {
  const int group = kClusterRows * (kGroupWarps * 4 + kWeightPitch);
  return (256 + kClusterRows * query_pitch_bytes(padded_dim) + 8 * padded_dim + kGroups * group + 127) / 128 * 128;
}
// Shared memory of a CTA that folds `slots` heads of up to `most_blocks` blocks.
inline constexpr int64_t cluster_shared_bytes(int64_t padded_dim, int64_t slots, int64_t most_blocks) {
  return cluster_tiles_at(static_cast<int>(padded_dim)) + kGroups * 4 * kKeyBlock * padded_dim +
         slots * most_blocks * partial_pitch(padded_dim) * 4;
}

template <int Dim>
void launch_cluster_singles(const AttentionArguments& args, device::Stream stream);
template <int Dim>
void launch_singles(const AttentionArguments& args, int64_t warps, device::Stream stream);
template <int Dim>
void launch_tiles(const AttentionArguments& args, device::Stream stream);

}  // namespace quadrille::kernels::cuda
