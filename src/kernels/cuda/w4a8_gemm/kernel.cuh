// SPDX-License-Identifier: Apache-2.0
// The grouped W4A8 product: one producer warp fills a ring of stages, consumer warpgroups convert, multiply, promote
// and store. Persistent over the work list, whose length the device alone knows. Chained (ptx/chain.cuh): the producer
// has its first weights on their way before the predecessor has ended, where the list allows it.
#pragma once

#include <cuda.h>

#include "kernels/cuda/w4a8_gemm/epilogue.cuh"
#include "kernels/cuda/w4a8_gemm/mainloop.cuh"
#include "kernels/cuda/w4a8_gemm/producer.cuh"

namespace quadrille::kernels::cuda {

template <typename Plan>
__device__ __forceinline__ void consume(const GemmArguments& args, uint8_t* shared, uint32_t base, uint32_t full,
                                        uint32_t empty) {
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const WorkList<Plan> work(args);
  MainLoop<Plan> loop(args, shared, base, full, empty, warpgroup, thread);
  Epilogue<Plan> epilogue(args, shared, warpgroup, thread);
  RingPlace<Plan::kStages> place;
  for (int item = work.first_item(); item < work.num_items; item += work.item_stride()) {
    if (work.at(item).row_tile * Plan::kWarpgroups + warpgroup >= args.row_blocks) {
      loop.skip(place);
      continue;
    }
    float total[Plan::kTokens / 2];
    loop.run(work, item, place, total);
    // Asked again: the item would cost registers during the main loop.
    epilogue.store(work.at(item), total);
  }
}

// The threads of a CTA meet; in a cluster all of its CTAs do.
template <typename Plan>
__device__ __forceinline__ void meet() {
  if constexpr (Plan::kCluster == 1) {
    __syncthreads();
  } else {
    ptx::cluster_sync();
  }
}

template <typename Plan>
__device__ __forceinline__ void gemm_body(const GemmArguments& args, const CUtensorMap& tokens, uint8_t* shared) {
  const uint32_t base = ptx::shared_address(shared);
  const uint32_t full = base + Plan::kBarriersAt;
  const uint32_t empty = full + Plan::kStages * 8;
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::barrier_init(full + s * 8, 1);
      ptx::barrier_init(empty + s * 8, Plan::kConsumerThreads / 32 * Plan::kCluster);
    }
    ptx::fence_barrier_init();
    ptx::prefetch_tensor_map(&tokens);
  }
  if constexpr (Plan::kVllm) {
    fill_scale_tables(reinterpret_cast<uint4*>(shared + Plan::kLutAt), static_cast<int>(threadIdx.x), Plan::kThreads);
  }
  meet<Plan>();  // barriers (of the neighbour, too) and tables are ready
  if (warp >= Plan::kConsumerThreads / 32) {
    Plan::give_registers();
    if (threadIdx.x == Plan::kConsumerThreads) produce<Plan>(args, &tokens, base, full, empty);
  } else {
    Plan::take_registers();
    consume<Plan>(args, shared, base, full, empty);
  }
  // A CTA stays until its neighbour has made the last copy into it and the last arrival at it.
  if constexpr (Plan::kCluster > 1) meet<Plan>();
}

template <typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kCtas)
    w4a8_gemm_kernel(const __grid_constant__ GemmArguments args, const __grid_constant__ CUtensorMap tokens) {
  extern __shared__ __align__(1024) uint8_t shared[];
  gemm_body<Plan>(args, tokens, shared);
}

template <typename Plan>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(Plan::kThreads, Plan::kCtas)
    w4a8_gemm_pair_kernel(const __grid_constant__ GemmArguments args, const __grid_constant__ CUtensorMap tokens) {
  extern __shared__ __align__(1024) uint8_t shared[];
  gemm_body<Plan>(args, tokens, shared);
}

}  // namespace quadrille::kernels::cuda
