// SPDX-License-Identifier: Apache-2.0
// The wide tile: a persistent pair of CTAs with neighbouring out features takes items of the work list; one producer
// thread a CTA finds them, tells the consumers and fills the ring, two warpgroups convert, multiply, promote and store.
#pragma once

#include <cuda.h>

#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/w4a8_gemm/wide_epilogue.cuh"
#include "kernels/cuda/w4a8_gemm/wide_loop.cuh"

namespace quadrille::kernels::cuda {

// Run by one thread. Barriers pair as in producer.cuh.
class WideProducer {
 public:
  using Plan = WidePlan;
  __device__ WideProducer(const GemmArguments& args, const CUtensorMap* tokens, uint8_t* shared,
                          uint32_t shared_address)
      : args_(args),
        tokens_(tokens),
        items_(reinterpret_cast<WorkItem*>(shared + Plan::kItemsAt)),
        shared_(shared_address),
        rank_(static_cast<int>(blockIdx.x) % Plan::kCluster) {}

  // Round k takes one of the `stride` items from k * stride on, a place further on in each round: without the turn a
  // pair would meet the same tile of every expert where the tiles of an expert divide the stride, some only full ones.
  __device__ void run() {
    const WorkList<Plan> work(args_);
    const int32_t stride = work.item_stride();
    int32_t turn = work.first_item();
    for (int32_t first = 0; first < work.num_items; first += stride) {
      if (first + turn < work.num_items) fill(work.at(first + turn));
      turn = turn + 1 == stride ? 0 : turn + 1;
    }
    ptx::barrier_wait(empty(), place_.phase ^ 1);
    items_[item_].num_rows = 0;  // the end
    ptx::barrier_arrive(full());
  }

 private:
  __device__ uint32_t full() const { return shared_ + Plan::kBarriersAt + place_.stage * 8; }
  __device__ uint32_t empty() const { return full() + Plan::kStages * 8; }

  __device__ __forceinline__ void fill(const WorkItem& w) {
    const int first_block = w.row_tile * Plan::kWarpgroups;
    const int blocks = max(0, min(Plan::kWarpgroups, args_.row_blocks - first_block));
    const uint32_t block_bytes = args_.k_records * Plan::kRecordBytes;
    const uint8_t* weights =
        args_.weights + w.expert * args_.expert_stride + static_cast<int64_t>(first_block) * block_bytes;
    const bool both = w.num_rows > Plan::kHalf;
    const uint32_t bytes = (both ? Plan::kTokenBytes : Plan::kHalfBytes) + blocks * Plan::kRecordBytes;
    for (int32_t record = 0; record < args_.k_records; ++record) {
      ptx::barrier_wait(empty(), place_.phase ^ 1);
      if (record == 0) items_[item_] = w;  // seen by who waits for this stage
      ptx::barrier_expect(full(), bytes);
      // Arrives in both CTAs at the same place and completes on the barrier of each. One half alone: they take turns.
      const int half = both ? rank_ : 0;
      if (both || record % Plan::kCluster == rank_) {
        ptx::tensor_copy_multicast(
            shared_ + Plan::kTokensAt + place_.stage * Plan::kTokenBytes + half * Plan::kHalfBytes, tokens_,
            record * layout::kRecordK, w.first_row + half * Plan::kHalf, full(), (1 << Plan::kCluster) - 1);
      }
      const uint32_t to = shared_ + Plan::kWeightsAt + place_.stage * Plan::kWarpgroups * Plan::kRecordBytes;
      if (blocks > 0) ptx::bulk_copy(to, weights, Plan::kRecordBytes, full());
      if (blocks > 1) ptx::bulk_copy(to + Plan::kRecordBytes, weights + block_bytes, Plan::kRecordBytes, full());
      weights += Plan::kRecordBytes;
      place_.advance();
    }
    item_ = (item_ + 1) % Plan::kItems;
  }

  const GemmArguments& args_;
  const CUtensorMap* tokens_;
  WorkItem* items_;
  uint32_t shared_;
  int rank_;
  int item_ = 0;
  WidePlace place_;
};

__device__ __forceinline__ void wide_consume(const GemmArguments& args, uint8_t* shared, uint32_t shared_address) {
  using Plan = WidePlan;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  WideLoop loop(args.k_records, shared, shared_address, warpgroup, thread);
  WideEpilogue epilogue(args, shared, warpgroup, thread);
  const volatile WorkItem* items = reinterpret_cast<const volatile WorkItem*>(shared + Plan::kItemsAt);
  WidePlace place;
#pragma unroll 1
  for (int item = 0;; item = (item + 1) % Plan::kItems) {
    loop.wait_full(place);
    const int num_rows = items[item].num_rows;
    if (num_rows == 0) return;
    if (items[item].row_tile * Plan::kWarpgroups + warpgroup >= args.row_blocks) {
      loop.skip(place);
      epilogue.sync();  // the next item but one writes the factors that the slowest warp may still read
      continue;
    }
    const auto factors = epilogue.fetch_factors(items[item].first_row, num_rows);
    const auto keep = [&] { epilogue.keep_factors(factors, item); };
    float total[WideLoop::kValues];
    if (num_rows > Plan::kFewTokens) {
      loop.run<Plan::kTokens>(place, total, keep);
    } else {
      loop.run<Plan::kFewTokens>(place, total, keep);
    }
    // Read again: the item would cost registers during the main loop.
    const WorkItem w = {items[item].expert, items[item].first_row, items[item].num_rows, items[item].row_tile};
    epilogue.store(w, item, total);
  }
}

__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(WidePlan::kThreads, 1)
    w4a8_wide_kernel(const __grid_constant__ GemmArguments args, const __grid_constant__ CUtensorMap tokens) {
  using Plan = WidePlan;
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = ptx::shared_address(shared);
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::barrier_init(base + Plan::kBarriersAt + s * 8, 1);
      ptx::barrier_init(base + Plan::kBarriersAt + (Plan::kStages + s) * 8,
                        Plan::kConsumerThreads / 32 * Plan::kCluster);
    }
    ptx::fence_barrier_init();
    ptx::prefetch_tensor_map(&tokens);
  }
  ptx::cluster_sync();  // the barriers of both CTAs are ready
  // 384 threads at 168 registers: 2 * 128 * 232 + 128 * 40 fit the same file.
  if (warp >= Plan::kConsumerThreads / 32) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == Plan::kConsumerThreads) WideProducer(args, &tokens, shared, base).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    wide_consume(args, shared, base);
  }
  ptx::cluster_sync();  // a CTA stays until its neighbour has made the last copy into it and the last arrival at it
}

}  // namespace quadrille::kernels::cuda
