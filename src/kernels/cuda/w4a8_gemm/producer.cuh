// SPDX-License-Identifier: Apache-2.0
// The producer warp: fills the ring of stages, one bulk copy a record and one tensor box a token tile, and runs ahead
// over the borders of work items.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/w4a8_gemm/work.cuh"

namespace quadrille::kernels::cuda {

// Run by one thread. full[s] completes when the stage's bytes have arrived (pairs with the consumers' wait); empty[s]
// when every consumer warp of the cluster has arrived after its last use.
template <typename Plan>
__device__ __forceinline__ void produce(const GemmArguments& args, const CUtensorMap* tokens, uint32_t shared,
                                        uint32_t full, uint32_t empty) {
  const WorkList<Plan> work(args);
  RingPlace<Plan::kStages> place;
  constexpr int kPartRows = Plan::kTokens / Plan::kCluster;  // that this CTA fetches for all
  constexpr int kPartBytes = kPartRows * layout::kRecordK;
  const int rank = static_cast<int>(blockIdx.x) % Plan::kCluster;
  const int64_t record_row = static_cast<int64_t>(args.k_records) * Plan::kRecordBytes;
  for (int item = work.first_item(); item < work.num_items; item += work.item_stride()) {
    const WorkItem w = work.at(item);
    const int first_block = w.row_tile * Plan::kWarpgroups;
    const int blocks = max(0, min(Plan::kWarpgroups, args.row_blocks - first_block));
    const uint8_t* weights = args.weights + w.expert * args.expert_stride + first_block * record_row;
    for (int record = 0; record < args.k_records; ++record) {
      const uint32_t barrier = full + place.stage * 8;
      ptx::barrier_wait(empty + place.stage * 8, place.phase ^ 1);
      ptx::barrier_expect(barrier, Plan::kTokenBytes + blocks * Plan::kRecordBytes);
      for (int b = 0; b < blocks; ++b) {
        ptx::bulk_copy(shared + Plan::kWeightsAt + (place.stage * Plan::kWarpgroups + b) * Plan::kRecordBytes,
                       weights + b * record_row + static_cast<int64_t>(record) * Plan::kRecordBytes, Plan::kRecordBytes,
                       barrier);
      }
      const uint32_t box = shared + Plan::kTokensAt + place.stage * Plan::kTokenBytes + rank * kPartBytes;
      const int x = record * layout::kRecordK;
      if constexpr (Plan::kCluster == 1) {
        ptx::tensor_copy(box, tokens, x, w.first_row, barrier);
      } else {
        // Arrives in both CTAs at the same place and completes on the barrier of each.
        ptx::tensor_copy_multicast(box, tokens, x, w.first_row + rank * kPartRows, barrier, (1 << Plan::kCluster) - 1);
      }
      place.advance();
    }
  }
}

}  // namespace quadrille::kernels::cuda
