// SPDX-License-Identifier: Apache-2.0
// Attention of tiles (prefill): which kernel has the head dimension. Both make the same bits for a row.
#pragma once

#include "kernels/cuda/attention/group_tiles.cuh"
#include "kernels/cuda/attention/warp_tiles.cuh"

namespace quadrille::kernels::cuda {

template <int Dim>
void launch_tiles(const AttentionArguments& args, device::Stream stream) {
  if constexpr (Dim <= 128) {
    launch_group_tiles<Dim>(args, stream);
  } else {
    launch_warp_tiles<Dim>(args, stream);
  }
}

}  // namespace quadrille::kernels::cuda
