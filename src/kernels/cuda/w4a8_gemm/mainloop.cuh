// SPDX-License-Identifier: Apache-2.0
// One work item of one consumer warpgroup: K in steps of a record (128), group sums by wgmma from +0, promoted by an
// fma chain over ascending groups (docs/numerics.md section 3); `vllm` is one chain over K.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/w4a8_gemm/weights.cuh"
#include "kernels/cuda/w4a8_gemm/work.cuh"

namespace quadrille::kernels::cuda {

template <typename Plan>
class MainLoop {
 public:
  static constexpr int kValues = Plan::kTokens / 2;  // accumulators of a thread
  using Registers = RecordRegisters<Plan::kGroups>;

  __device__ __forceinline__ MainLoop(const GemmArguments& args, const uint8_t* shared, uint32_t shared_address,
                                      uint32_t full, uint32_t empty, int warpgroup, int thread)
      : args_(args),
        weights_(shared + Plan::kWeightsAt + warpgroup * Plan::kRecordBytes),
        tables_(reinterpret_cast<const uint4*>(shared + Plan::kLutAt)),
        tokens_(shared_address + Plan::kTokensAt),
        full_(full),
        empty_(empty),
        thread_(thread) {}

  // total[]: exact: the chain over groups; vllm: the accumulator.
  __device__ __forceinline__ void run(const WorkList<Plan>& work, int item, RingPlace<Plan::kStages>& place,
                                      float (&total)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) total[i] = 0.0f;
    Registers even, odd;
    WorkItem w{};
    if constexpr (Plan::kArithmetic == Arithmetic::kBlock) w = work.at(item);  // block scales are found by row
    ptx::barrier_wait(full_ + place.stage * 8, place.phase);                   // pairs with the producer's expect
    load(place, even);
    for (int record = 0; record < args_.k_records; record += 2) {
      step(w, record, place, even, odd, total);
      if (record + 1 >= args_.k_records) break;
      step(w, record + 1, place, odd, even, total);
    }
  }

  // An item that this warpgroup has no rows for: only takes part in the ring.
  __device__ __forceinline__ void skip(RingPlace<Plan::kStages>& place) {
    for (int record = 0; record < args_.k_records; ++record) {
      ptx::barrier_wait(full_ + place.stage * 8, place.phase);
      release(place.stage);
      place.advance();
    }
  }

 private:
  __device__ __forceinline__ void load(const RingPlace<Plan::kStages>& place, Registers& out) {
    load_record<Plan>(weights_ + place.stage * Plan::kWarpgroups * Plan::kRecordBytes, tables_, thread_, out);
  }

  // One arrival a consumer warp at every producer of the cluster; pairs with their waits on empty.
  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    if constexpr (Plan::kCluster == 1) {
      if (thread_ % 32 == 0) ptx::barrier_arrive(empty_ + stage * 8);
    } else {
      if (thread_ % 32 < Plan::kCluster) ptx::barrier_arrive_in(empty_ + stage * 8, thread_ % 32);
    }
  }

  // The products of one record from `now` while the next record is converted into `next`.
  __device__ __forceinline__ void step(const WorkItem& w, int record, RingPlace<Plan::kStages>& place, Registers& now,
                                       Registers& next, float (&total)[kValues]) {
    // All lanes agree; told so, the compiler keeps the descriptors in uniform registers.
    const int stage = __shfl_sync(0xffffffffu, place.stage, 0);
    const int tile = Plan::kResident ? __shfl_sync(0xffffffffu, record, 0) : stage;
    const uint64_t tokens = ptx::swizzled_descriptor(tokens_ + tile * Plan::kTokenBytes);
    place.advance();
    if constexpr (Plan::kVllm) {
      multiply<4>(total, now.a, tokens, record > 0);
      convert_next(record, place, next);
      ptx::wgmma_wait<0>();
      ptx::pin(total);
      release(stage);
    } else {
      step_groups(w, record, stage, tokens, place, now, next, total);
    }
  }

  __device__ __forceinline__ void step_groups(const WorkItem& w, int record, int stage, uint64_t tokens,
                                              const RingPlace<Plan::kStages>& place, Registers& now, Registers& next,
                                              float (&total)[kValues]) {
    constexpr int kGroups = Plan::kGroups;
    constexpr int kSets = Plan::kSets;
    constexpr int kSteps = Plan::kStepsPerGroup;
    float sum[kSets][kValues];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (group >= kSets) {
        ptx::wgmma_wait<kSets - 1>();
        promote(w, record, now.scale[group - kSets], sum[group % kSets], total);
      }
      multiply<kSteps>(sum[group % kSets], now.a + group * kSteps * 4, tokens + group * kSteps * 2, false);
    }
    convert_next(record, place, next);
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int set = 0; set < kSets; ++set) ptx::pin(sum[set]);
    release(stage);
#pragma unroll
    for (int group = kGroups - kSets; group < kGroups; ++group) {
      promote(w, record, now.scale[group], sum[group % kSets], total);
    }
  }

  // `Steps` k32 steps as one committed group; the first from +0 unless it continues.
  template <int Steps>
  __device__ __forceinline__ void multiply(float (&sum)[kValues], const uint32_t* a, uint64_t tokens, bool goes_on) {
    ptx::pin(sum);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < Steps; ++s) ptx::wgmma<Plan::kTokens>(sum, a + s * 4, tokens + s * 2, s > 0 || goes_on);
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void convert_next(int record, const RingPlace<Plan::kStages>& place, Registers& next) {
    if (record + 1 >= args_.k_records) return;
    ptx::barrier_wait(full_ + place.stage * 8, place.phase);  // pairs with the producer's expect
    load(place, next);
  }

  // final = fmaf(s_g, acc, final); with 1 x 128 activation scales fmaf(s_g, sa_b * acc, final).
  __device__ __forceinline__ void promote(const WorkItem& w, int record, uint32_t scale, float (&sum)[kValues],
                                          float (&total)[kValues]) {
    ptx::pin(sum);
    const float s0 = low_scale(scale);
    const float s1 = high_scale(scale);
#pragma unroll
    for (int i = 0; i < kValues; i += 4) {
      if constexpr (Plan::kArithmetic == Arithmetic::kBlock) {
        const int token = i * 2 + thread_ % 4 * 2;
        const float* scales = args_.block_scale +
                              (static_cast<int64_t>(w.expert) * args_.k_records + record) * args_.block_max_m +
                              (w.first_row - w.expert * args_.block_max_m);
        const float left = token < w.num_rows ? scales[token] : 0.0f;
        const float right = token + 1 < w.num_rows ? scales[token + 1] : 0.0f;
        sum[i] = left * sum[i];
        sum[i + 1] = right * sum[i + 1];
        sum[i + 2] = left * sum[i + 2];
        sum[i + 3] = right * sum[i + 3];
      }
      total[i] = __fmaf_rn(s0, sum[i], total[i]);
      total[i + 1] = __fmaf_rn(s0, sum[i + 1], total[i + 1]);
      total[i + 2] = __fmaf_rn(s1, sum[i + 2], total[i + 2]);
      total[i + 3] = __fmaf_rn(s1, sum[i + 3], total[i + 3]);
    }
  }

  const GemmArguments& args_;
  const uint8_t* weights_;
  const uint4* tables_;
  uint32_t tokens_, full_, empty_;
  int thread_;
};

}  // namespace quadrille::kernels::cuda
