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

template <int Dim>
void launch_singles(const AttentionArguments& args, int64_t warps, device::Stream stream);
template <int Dim>
void launch_tiles(const AttentionArguments& args, device::Stream stream);

}  // namespace quadrille::kernels::cuda
