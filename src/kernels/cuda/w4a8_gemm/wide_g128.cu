// SPDX-License-Identifier: Apache-2.0
// Starts the wide tile.
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/w4a8_gemm/launch.cuh"
#include "kernels/cuda/w4a8_gemm/wide_kernel.cuh"

namespace quadrille::kernels::cuda {

void launch_wide(const DeviceW4A8Gemm& p, GemmArguments args, device::Stream stream) {
  using Plan = WidePlan;
  static_assert(Plan::kTokens == kTileShapes[kWideTile].tokens && Plan::kStages == kTileShapes[kWideTile].stages);
  args.parts = 1;
  // Idempotent and cheap (no device call): no flag to guard between threads and devices.
  if (cudaFuncSetAttribute(w4a8_wide_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes) !=
      cudaSuccess) {
    check_launch("w4a8_gemm: shared memory");
  }
  const CUtensorMap tokens = activation_map(p.act, p.act_rows, p.act_pitch, Plan::kHalf);
  const int64_t items = num_items(p, args, Plan::kTokens, Plan::kWarpgroups * Plan::kCluster);
  const int64_t pairs = num_multiprocessors() / Plan::kCluster;
  const int grid = static_cast<int>(items < pairs ? items : pairs) * Plan::kCluster;
  if (grid == 0) return;
  w4a8_wide_kernel<<<grid, Plan::kThreads, Plan::kSharedBytes, native(stream)>>>(args, tokens);
  check_launch("w4a8_gemm");
}

}  // namespace quadrille::kernels::cuda
