// SPDX-License-Identifier: Apache-2.0
// Starts one compiled kernel: its shared memory, its grid, the tensor map of the activations.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/w4a8_gemm/kernel.cuh"

namespace quadrille::kernels::cuda {

// Multiprocessors of the current device.
int num_multiprocessors();

// Work items of at most `tokens` rows by 64 * `blocks` out features.
int64_t num_items(const DeviceW4A8Gemm& p, const GemmArguments& args, int tokens, int blocks);

// The wide tile (wide_plan.h): `exact`, groups of 128 or one scale a channel.
void launch_wide(const DeviceW4A8Gemm& p, GemmArguments args, device::Stream stream);

template <int Tile, Arithmetic A, int GroupK>
void launch_gemm(const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream) {
  using Plan = GemmPlan<Tile, A, GroupK>;
  static_assert(Plan::kCluster <= 2);
  void (*kernel)(GemmArguments, CUtensorMap);
  if constexpr (Plan::kCluster == 2) {
    kernel = w4a8_gemm_pair_kernel<Plan>;
  } else {
    kernel = w4a8_gemm_kernel<Plan>;
  }
  // Idempotent and cheap (no device call): no flag to guard between threads and devices.
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes) != cudaSuccess) {
    check_launch("w4a8_gemm: shared memory");
  }
  const CUtensorMap tokens = activation_map(p.act, p.act_rows, p.act_pitch, Plan::kTokens / Plan::kCluster);
  const int64_t items = num_items(p, args, Plan::kTokens, Plan::kWarpgroups * Plan::kCluster);
  const int64_t resident = static_cast<int64_t>(num_multiprocessors()) * Plan::kCtas / Plan::kCluster;
  const int grid = static_cast<int>(items < resident ? items : resident) * Plan::kCluster;
  if (grid == 0) return;
  launch_chained(kernel, grid, Plan::kThreads, Plan::kSharedBytes, native(stream), args, tokens);
  check_launch("w4a8_gemm");
}

// One unit a (arithmetic, group) holds all its tiles: QD_GEMM_TILES(kExact, 128, QD_ALL_TILES).
template <Arithmetic A, int GroupK>
void gemm_of(int tile, const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream);

#define QD_GEMM_TILE(A, GROUP, TILE) \
  case TILE:                         \
    return launch_gemm<TILE, Arithmetic::A, GROUP>(p, args, stream);

#define QD_GEMM_TILES(A, GROUP, TILES)                                                             \
  template <>                                                                                      \
  void gemm_of<Arithmetic::A, GROUP>(int tile, const DeviceW4A8Gemm& p, const GemmArguments& args, \
                                     device::Stream stream) {                                      \
    switch (tile) {                                                                                \
      TILES(A, GROUP)                                                                              \
      default:                                                                                     \
        throw LaunchFailure("w4a8_gemm: this tile is not compiled for these activation scales");   \
    }                                                                                              \
  }

#define QD_ALL_TILES(A, GROUP) \
  QD_GEMM_TILE(A, GROUP, 0)    \
  QD_GEMM_TILE(A, GROUP, 1)    \
  QD_GEMM_TILE(A, GROUP, 2)    \
  QD_GEMM_TILE(A, GROUP, 3)    \
  QD_GEMM_TILE(A, GROUP, 4)

// 1 x 128 activation scales need two registers a token pair beside everything else: tiles up to 32 tokens do not spill.
#define QD_BLOCK_TILES(A, GROUP) \
  QD_GEMM_TILE(A, GROUP, 0)      \
  QD_GEMM_TILE(A, GROUP, 1)      \
  QD_GEMM_TILE(A, GROUP, 2)

}  // namespace quadrille::kernels::cuda
