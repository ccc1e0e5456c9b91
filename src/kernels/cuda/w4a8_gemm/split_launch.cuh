// SPDX-License-Identifier: Apache-2.0
// Starts the shared form: its shared memory, its grid of clusters, chained to the kernel before it.
#pragma once

#include "kernels/cuda/launch_clusters.h"
#include "kernels/cuda/w4a8_gemm/launch.cuh"
#include "kernels/cuda/w4a8_gemm/split_kernel.cuh"

namespace quadrille::kernels::cuda {

template <int Tokens, int GroupK, SplitInput Input = SplitInput::kCodes>
void launch_split(const DeviceW4A8Gemm& p, const GemmArguments& args, const SplitArguments& in, int ctas,
                  device::Stream stream) {
  using Plan = SplitPlan<Tokens, GroupK, Input>;
  const auto kernel = w4a8_split_kernel<Plan>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes) != cudaSuccess) {
    check_launch("w4a8_gemm: shared memory");
  }
  const int64_t items = num_items(p, args, Tokens, 1);
  const int64_t resident = std::max<int64_t>(1, static_cast<int64_t>(num_multiprocessors()) * Plan::kCtas / ctas);
  const auto clusters = static_cast<unsigned>(std::min(items, resident));
  if (clusters == 0) return;
  launch_chained_clusters(kernel, clusters * static_cast<unsigned>(ctas), Plan::kThreads, static_cast<unsigned>(ctas),
                          Plan::kSharedBytes, native(stream), args, in, ctas);
  check_launch("w4a8_gemm, shared form");
}

// One unit a group size holds its token counts; `tile` is one with k_ctas > 0.
template <int GroupK>
void split_gemm_of(int tile, const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream);

// Whose input is not the codes of its rows: any tile of 8 tokens, of the plain ones one CTA an item.
void split_gemm_with_input(const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream);

#define QD_SPLIT_TILES(GROUP)                                                                                      \
  template <>                                                                                                      \
  void split_gemm_of<GROUP>(int tile, const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream) { \
    const int ctas = kTileShapes[tile].k_ctas;                                                                     \
    if (kTileShapes[tile].tokens == 8) return launch_split<8, GROUP>(p, args, {}, ctas, stream);                   \
    launch_split<16, GROUP>(p, args, {}, ctas, stream);                                                            \
  }

}  // namespace quadrille::kernels::cuda
