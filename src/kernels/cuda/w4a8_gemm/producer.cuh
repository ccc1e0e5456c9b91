// SPDX-License-Identifier: Apache-2.0
// The producer warp: fills the ring of stages, one bulk copy a record and one tensor box a token tile, and runs ahead
// over the borders of work items.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/w4a8_gemm/work.cuh"

namespace quadrille::kernels::cuda {

// Run by one thread. full[s] completes when the stage's bytes have arrived (pairs with the consumers' wait); empty[s]
// when every consumer warp of the cluster has arrived after its last use.
template <typename Plan>
__device__ __forceinline__ void produce(const GemmArguments& args, const CUtensorMap* tokens, uint32_t shared,
                                        uint32_t full, uint32_t empty) {
  // In a cluster the neighbour's barrier has to expect this CTA's tokens first: its weights are not worth the trouble.
  const bool early = Plan::kCluster == 1 && args.list_is_known;
  if (!early) ptx::wait_for_predecessor();
  const WorkList<Plan> work(args);
  RingPlace<Plan::kStages> place;
  int fetched = 0;                                           // stages whose weights are on their way
  constexpr int kPartRows = Plan::kTokens / Plan::kCluster;  // that this CTA fetches for all
  constexpr int kPartBytes = kPartRows * layout::kRecordK;
  const int rank = static_cast<int>(blockIdx.x) % Plan::kCluster;
  const int64_t record_row = static_cast<int64_t>(args.k_records) * Plan::kRecordBytes;
  for (int item = work.first_item(); item < work.num_items; item += work.item_stride()) {
    const WorkItem w = work.at(item);
    const int first_block = w.row_tile * Plan::kWarpgroups;
    const int blocks = max(0, min(Plan::kWarpgroups, args.row_blocks - first_block));
    const uint8_t* weights = args.weights + w.expert * args.expert_stride + first_block * record_row;
    const auto fetch_weights = [&](int record, int stage) {
      const uint32_t barrier = full + stage * 8;
      ptx::barrier_expect(barrier, (Plan::kResident ? 0 : Plan::kTokenBytes) + blocks * Plan::kRecordBytes);
      for (int b = 0; b < blocks; ++b) {
        ptx::bulk_copy(shared + Plan::kWeightsAt + (stage * Plan::kWarpgroups + b) * Plan::kRecordBytes,
                       weights + b * record_row + static_cast<int64_t>(record) * Plan::kRecordBytes, Plan::kRecordBytes,
                       barrier);
      }
    };
    if (early && item == work.first_item()) {
      fetched = min(Plan::kStages, args.k_records);
      for (int record = 0; record < fetched; ++record) fetch_weights(record, record);
      ptx::wait_for_predecessor();
    }
    for (int record = 0; record < args.k_records; ++record) {
      const uint32_t barrier = full + place.stage * 8;
      if (fetched > 0) {
        --fetched;
      } else {
        ptx::barrier_wait(empty + place.stage * 8, place.phase ^ 1);
        fetch_weights(record, place.stage);
      }
      const uint32_t box = shared + Plan::kTokensAt + place.stage * Plan::kTokenBytes + rank * kPartBytes;
      const int x = record * layout::kRecordK;
      if constexpr (Plan::kResident) {
        // The consumers bring the codes.
      } else if constexpr (Plan::kCluster == 1) {
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
