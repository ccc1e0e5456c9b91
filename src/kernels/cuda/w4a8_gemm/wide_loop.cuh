// SPDX-License-Identifier: Apache-2.0
// The main loop of the wide tile: K in records of 128, one group a record. While the tensor cores multiply record i,
// its successor is converted; then the sums are promoted by an fma chain (docs/numerics.md section 3).
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/w4a8_gemm/weights.cuh"
#include "kernels/cuda/w4a8_gemm/wide_plan.h"
#include "kernels/cuda/w4a8_gemm/work.cuh"

namespace quadrille::kernels::cuda {

using WidePlace = RingPlace<WidePlan::kStages>;

class WideLoop {
 public:
  using Plan = WidePlan;
  static constexpr int kValues = Plan::kTokens / 2;  // accumulators of a thread
  using Registers = RecordRegisters<1>;

  __device__ __forceinline__ WideLoop(int32_t k_records, const uint8_t* shared, uint32_t shared_address, int warpgroup,
                                      int thread)
      : k_records_(k_records),
        weights_(shared + Plan::kWeightsAt + warpgroup * Plan::kRecordBytes),
        shared_(shared_address),
        thread_(thread) {}

  // Pairs with the producer's expect.
  __device__ __forceinline__ void wait_full(const WidePlace& place) const {
    ptx::barrier_wait(shared_ + Plan::kBarriersAt + place.stage * 8, place.phase);
  }

  // total: the chain over groups of tokens 0..Tokens-1 of the tile. The first stage is full. `start` is called once.
  template <int Tokens, typename Start>
  __device__ __forceinline__ void run(WidePlace& place, float (&total)[kValues], const Start& start) {
    Registers even, odd;
    float sum[Tokens / 2];
    // A sum without a value would live through the whole kernel.
#pragma unroll
    for (int i = 0; i < Tokens / 2; ++i) sum[i] = total[i] = 0.0f;
    load(place, even);
    start();
#pragma unroll 1
    for (int record = 0; record < k_records_; record += 2) {
      step<Tokens>(record, place, even, odd, sum, total);
      if (record + 1 >= k_records_) break;
      step<Tokens>(record + 1, place, odd, even, sum, total);
    }
  }

  // An item that this warpgroup has no rows for: only takes part in the ring.
  __device__ __forceinline__ void skip(WidePlace& place) {
#pragma unroll 1
    for (int record = 0; record < k_records_; ++record) {
      wait_full(place);
      release(place.stage);
      place.advance();
    }
  }

 private:
  // One arrival a consumer warp at both producers of the pair; pairs with their waits on empty.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (thread_ % 32 < Plan::kCluster) {
      ptx::barrier_arrive_in(shared_ + Plan::kBarriersAt + (Plan::kStages + stage) * 8, thread_ % 32);
    }
  }

  // Both registers of a word. To the compiler the rotation is a black box: it would make shifts of the masked parts of
  // it, one instruction more a word.
  static __device__ __forceinline__ void decode(uint32_t word, uint32_t* a) {
    uint32_t turned;
    asm("shf.l.wrap.b32 %0, %1, %1, 4;" : "=r"(turned) : "r"(word));
    a[0] = numerics::exact_a_register(word);
    a[1] = numerics::exact_a_register(turned);
  }

  __device__ __forceinline__ void load(const WidePlace& place, Registers& out) const {
    const uint8_t* record = weights_ + place.stage * Plan::kWarpgroups * Plan::kRecordBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 words = *reinterpret_cast<const uint4*>(record + half * 2048 + thread_ * 16);
      decode(words.x, out.a + half * 8);
      decode(words.y, out.a + half * 8 + 2);
      decode(words.z, out.a + half * 8 + 4);
      decode(words.w, out.a + half * 8 + 6);
    }
    out.scale[0] = *reinterpret_cast<const uint32_t*>(record + layout::kRecordCodeBytes +
                                                      (thread_ / 32 * 8 + thread_ % 32 / 4) * 4);
  }

  // The products of one record from `now` while the next one is converted into `next`.
  template <int Tokens>
  __device__ __forceinline__ void step(int record, WidePlace& place, Registers& now, Registers& next,
                                       float (&sum)[Tokens / 2], float (&total)[kValues]) {
    // All lanes agree on the stage; told so, the compiler keeps the descriptors in uniform registers.
    const int stage = __shfl_sync(0xffffffffu, place.stage, 0);
    const uint64_t tokens = ptx::swizzled_descriptor(shared_ + Plan::kTokensAt + stage * Plan::kTokenBytes);
    place.advance();
    ptx::pin(sum);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s) ptx::wgmma<Tokens>(sum, now.a + s * 4, tokens + s * 2, s > 0);
    ptx::wgmma_commit();
    if (record + 1 < k_records_) {
      wait_full(place);
      load(place, next);
    }
    ptx::wgmma_wait<0>();
    ptx::pin(sum);
    release(stage);
    const float s0 = low_scale(now.scale[0]);
    const float s1 = high_scale(now.scale[0]);
#pragma unroll
    for (int i = 0; i < Tokens / 2; i += 4) {
      total[i] = __fmaf_rn(s0, sum[i], total[i]);
      total[i + 1] = __fmaf_rn(s0, sum[i + 1], total[i + 1]);
      total[i + 2] = __fmaf_rn(s1, sum[i + 2], total[i + 2]);
      total[i + 3] = __fmaf_rn(s1, sum[i + 3], total[i + 3]);
    }
  }

  int32_t k_records_;
  const uint8_t* weights_;
  uint32_t shared_;
  int thread_;
};

}  // namespace quadrille::kernels::cuda
