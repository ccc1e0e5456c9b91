// SPDX-License-Identifier: Apache-2.0
// The tile list of the masked layout: one block over all experts.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/plan_tiles.cuh"
#include "kernels/cuda/ptx/chain.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kMostThreads = 1024;

struct MaskedSource {
  PlanMasked p;
  __device__ int32_t rows(int64_t e) const {
    const MaskedRows found = masked_rows(p.masked_m[e], p.max_m);
    if (found.bad && p.status != nullptr) atomicOr(p.status, kStatusBadMaskedCount);
    return found.rows;
  }
  __device__ int32_t place(int64_t e, int32_t) const { return static_cast<int32_t>(e * p.max_m); }
  __device__ void finish(int32_t) const {}
};

__global__ void __launch_bounds__(kMostThreads) plan_masked_kernel(PlanMasked p) {
  __shared__ RowsTiles warp_sums[kWarp];
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  list_experts(MaskedSource{p}, p.num_experts, static_cast<int32_t>(p.tile_tokens), p.tiles, p.num_tiles, warp_sums);
}

}  // namespace

void plan_masked(const PlanMasked& p, device::Stream stream) {
  QD_CHECK(p.num_experts >= 0 && p.max_m >= 0 && p.num_experts * p.max_m <= INT32_MAX, "rows of the masked layout");
  QD_CHECK(p.tile_tokens >= 1 && p.tile_tokens <= INT32_MAX, "rows a tile");
  QD_CHECK(reinterpret_cast<uintptr_t>(p.tiles) % 16 == 0, "tiles on 16 bytes");
  const int warps = p.num_experts < kMostThreads ? ceil_div(p.num_experts, kWarp) : kMostThreads / kWarp;
  launch_chained(plan_masked_kernel, 1, kWarp * (warps > 0 ? warps : 1), 0, native(stream), p);
  check_launch("plan_masked");
}

}  // namespace quadrille::kernels::cuda
