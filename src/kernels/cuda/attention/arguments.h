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
  int64_t parts;        // CTAs that the blocks of a single may be spread over
  int64_t least;        // blocks that a CTA takes at once: its warps
  int64_t most_blocks;  // of a single, in the workspace
  int32_t rows;         // of a partial result in shared memory: 8 or 16

  QD_HD int64_t head_pairs() const { return p.pages.num_kv_heads * heads.tiles(); }
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
