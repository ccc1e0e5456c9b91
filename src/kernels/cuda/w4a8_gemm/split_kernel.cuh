// SPDX-License-Identifier: Apache-2.0
// The shared form: a producer thread brings stages of four records by one bulk copy each; a warpgroup converts and
// multiplies its record of every stage and sends each group's sums (16 rows a warp) to the CTA that owns these rows;
// there one thread an output makes the fma chain over ascending groups, a pass behind. The bits are those of the plain
// form: docs/numerics.md section 3, "group sums may be computed anywhere".
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/remote_store.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/w4a8_gemm/split_input.cuh"
#include "kernels/cuda/w4a8_gemm/weights.cuh"
#include "numerics/activation.h"

namespace quadrille::kernels::cuda {

// The item; of a matrix with one token tile without asking the list's divisions.
template <typename Plan>
__device__ __forceinline__ WorkItem split_item(const GemmArguments& args, const WorkList<Plan>& work, int item) {
  if (args.list.tiles == nullptr && args.list.num_rows <= Plan::kTokens) {
    return {0, 0, static_cast<int32_t>(args.list.num_rows), item};
  }
  return work.at(item);
}

// One thread. Weights are written by no kernel, so they are fetched before the predecessor has ended.
template <typename Plan>
__device__ __forceinline__ void split_produce(const GemmArguments& args, const SplitPlace& at) {
  if (!args.list_is_known) ptx::wait_for_predecessor();
  const WorkList<Plan> work(args);
  RingPlace<Plan::kStages> ring;
  for (int item = at.first_item(); item < work.num_items; item += at.item_stride()) {
    const WorkItem w = split_item<Plan>(args, work, item);
    const uint8_t* weights = args.weights + w.expert * args.expert_stride +
                             static_cast<int64_t>(w.row_tile) * args.k_records * Plan::kRecordBytes;
    for (int first = Plan::kSharers * at.rank; first < args.k_records; first += Plan::kSharers * at.ctas) {
      const int bytes = min(Plan::kSharers, args.k_records - first) * Plan::kRecordBytes;
      const uint32_t barrier = at.base + Plan::kFullAt + ring.stage * 8;
      ptx::barrier_wait(at.base + Plan::kEmptyAt + ring.stage * 8, ring.phase ^ 1);  // pairs with release()
      ptx::barrier_expect(barrier, bytes);
      ptx::bulk_copy(at.base + Plan::kWeightsAt + ring.stage * Plan::kStageBytes,
                     weights + static_cast<int64_t>(first) * Plan::kRecordBytes, bytes, barrier);
      ring.advance();
    }
  }
}

// One of the four warpgroups that share the records of a CTA.
template <typename Plan>
class SplitSharer {
 public:
  __device__ __forceinline__ SplitSharer(const GemmArguments& args, const SplitArguments& in, const SplitPlace& at,
                                         int sharer, int thread)
      : args_(args), at_(at), source_(args, in, at, sharer), sharer_(sharer), thread_(thread), lane_(thread % 32) {
    // Warp q of every sharer holds rows 16 q.. of the 64: quarter q, which one CTA owns.
    const int quarter = thread / 32;
    const int log_quarters = 2 - at.log_ctas;
    target_ = at.ctas > 1 ? ptx::address_in(at.base, quarter >> log_quarters) - at.base : 0;
    slot_ = quarter & ((1 << log_quarters) - 1);
  }

  __device__ __forceinline__ void run(const WorkList<Plan>& work, int item) {
    const WorkItem w = split_item<Plan>(args_, work, item);
    const int num_passes = (args_.k_records + stride() - 1) >> (2 + at_.log_ctas);
    float total[Plan::kBlocks] = {};
    uint4 pieces[Plan::kVectors];
    RecordRegisters<Plan::kGroups> record;
    for (int pass = 0; pass < num_passes; ++pass) {
      const int number = pass * stride() + at_.rank * Plan::kSharers + sharer_;
      const bool mine = number < args_.k_records;
      if (number - sharer_ < args_.k_records) take_record(mine, record);
      if (pass == 0) {
        // Only weights and, where it is older, the list have been touched so far.
        ptx::wait_for_predecessor();
        ptx::let_successor_start();
        source_.finish(w);
        load_tokens(w, number, pieces);
      }
      if (pass % Plan::kRound == 0) {
        store_tokens(pieces);
        if (pass + Plan::kRound < num_passes) load_tokens(w, number + Plan::kRound * stride(), pieces);
      }
      // Who sends nothing must not ask: the chain does not wait for him, and may be two phases of the barrier ahead.
      if (mine || at_.ctas == 1) wait_for_room();
      if (mine) multiply_and_send(w, pass, record);
      if (at_.ctas == 1) say_sent();
      if (pass > 0) chain(w, pass - 1, total);
      ++passes_;
    }
    float factor[Plan::kBlocks];
    load_factors(w, factor);  // on its way while the last sums arrive
    chain(w, num_passes - 1, total);
    // Asked again: expert and out features would cost registers during the loop.
    if (chains()) store(split_item<Plan>(args_, work, item), total, factor);
  }

 private:
  static constexpr int kValues = Plan::kTokens / 2;

  __device__ __forceinline__ int stride() const { return Plan::kSharers * at_.ctas; }  // records of a pass
  // Warpgroup j owns the quarter j of those that are here; the others only multiply.
  __device__ __forceinline__ bool chains() const { return sharer_ * at_.ctas < 4; }
  __device__ __forceinline__ int own_quarter() const { return (at_.rank << (2 - at_.log_ctas)) + sharer_; }

  __device__ __forceinline__ void take_record(bool mine, RecordRegisters<Plan::kGroups>& record) {
    const int stage = __shfl_sync(0xffffffffu, ring_.stage, 0);
    ptx::barrier_wait(at_.base + Plan::kFullAt + stage * 8, ring_.phase);  // pairs with the producer's expect
    if (mine) {
      load_record<Plan>(at_.shared + Plan::kWeightsAt + stage * Plan::kStageBytes + sharer_ * Plan::kRecordBytes,
                        nullptr, thread_, record);
    }
    __syncwarp();
    if (lane_ == 0) ptx::barrier_arrive(at_.base + Plan::kEmptyAt + stage * 8);  // pairs with the producer's wait
    ring_.advance();
  }

  // Row and 16-byte piece of vector v of this thread: row 8 and more of 8 tokens are the round's second record.
  __device__ __forceinline__ int vector_row(int v) const { return thread_ / 8 + 16 * v; }

  __device__ __forceinline__ void load_tokens(const WorkItem& w, int number, uint4 (&pieces)[Plan::kVectors]) const {
#pragma unroll
    for (int v = 0; v < Plan::kVectors; ++v) {
      const int row = vector_row(v) % Plan::kTokens;
      const int record = number + vector_row(v) / Plan::kTokens * stride();
      const int64_t column = static_cast<int64_t>(record) * layout::kRecordK + thread_ % 8 * 16;
      pieces[v] = source_.piece(w, row, column);
    }
  }
  __device__ __forceinline__ uint32_t round_at() const {
    return Plan::kTokensAt + (sharer_ * 2 + (rounds_ & 1)) * Plan::kRoundBytes;
  }
  // Into the other buffer than the round before: that one's products may still read theirs in other warps; those of the
  // round before that have ended in all of them, by the barrier of the round before.
  __device__ __forceinline__ void store_tokens(const uint4 (&pieces)[Plan::kVectors]) {
    ++rounds_;
#pragma unroll
    for (int v = 0; v < Plan::kVectors; ++v) {
      const int row = vector_row(v);
      *reinterpret_cast<uint4*>(at_.shared + round_at() + row * layout::kRecordK + ((thread_ % 8) ^ (row % 8)) * 16) =
          pieces[v];
    }
    ptx::fence_async_shared();            // the products read through the asynchronous proxy
    ptx::warpgroup_barrier(1 + sharer_);  // all tokens of the round stand
  }

  // The buffer was filled and read two passes ago; pairs with the arrivals in chain().
  __device__ __forceinline__ void wait_for_room() const {
    if (passes_ < 2) return;
    ptx::barrier_wait(at_.base + Plan::kFreeAt + ((passes_ & 1) * 4 + thread_ / 32) * 8, (passes_ / 2 - 1) & 1);
  }

  __device__ __forceinline__ void multiply_and_send(const WorkItem& w, int pass,
                                                    const RecordRegisters<Plan::kGroups>& record) {
    constexpr int kSets = Plan::kSets, kSteps = Plan::kStepsPerGroup;
    const uint32_t tile =
        __shfl_sync(0xffffffffu, at_.base + round_at() + pass % Plan::kRound * Plan::kRecordTokenBytes, 0);
    const uint64_t tokens = ptx::swizzled_descriptor(tile);
    float sum[kSets][kValues];
#pragma unroll
    for (int group = 0; group < Plan::kGroups; ++group) {
      if (group >= kSets) {
        ptx::wgmma_wait<kSets - 1>();
        send(w, group - kSets, record, sum[group % kSets]);
      }
      ptx::pin(sum[group % kSets]);
      ptx::wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        ptx::wgmma<Plan::kTokens>(sum[group % kSets], record.a + (group * kSteps + s) * 4,
                                  tokens + (group * kSteps + s) * 2, s > 0);
      }
      ptx::wgmma_commit();
    }
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int group = Plan::kGroups - kSets; group < Plan::kGroups; ++group) {
      send(w, group, record, sum[group % kSets]);
    }
  }

  // The sums of this warp's 16 rows, live tokens only, and the rows' scales, to the CTA that owns the rows.
  __device__ __forceinline__ void send(const WorkItem& w, int group, const RecordRegisters<Plan::kGroups>& record,
                                       float (&sum)[kValues]) const {
    ptx::pin(sum);
    const int g = lane_ / 4, t = lane_ % 4;
    const int place = (slot_ * stride() + at_.rank * Plan::kSharers + sharer_) * Plan::kGroups + group;
    const uint32_t slot = at_.base + target_ + Plan::kSlotsAt + (passes_ & 1) * Plan::kBufferBytes +
                          static_cast<uint32_t>(place) * Plan::kSlotBytes;
    const uint32_t barrier = at_.base + target_ + Plan::kSumsAt + ((passes_ & 1) * 4 + slot_) * 8;
    if (at_.ctas == 1) {
      // Without a cluster st.async is an illegal instruction, and not needed.
      uint8_t* const here = at_.shared + (slot - at_.base);
#pragma unroll
      for (int b = 0; b < Plan::kBlocks; ++b) {
        if (8 * b + 2 * t >= w.num_rows) continue;
        *reinterpret_cast<float4*>(here + b * 512 + (t * 8 + g) * 16) =
            make_float4(sum[4 * b], sum[4 * b + 1], sum[4 * b + 2], sum[4 * b + 3]);
      }
      if (t == 0) *reinterpret_cast<uint32_t*>(here + Plan::kScalesAt + g * 4) = record.scale[group];
      return;
    }
#pragma unroll
    for (int b = 0; b < Plan::kBlocks; ++b) {
      if (8 * b + 2 * t >= w.num_rows) continue;
      ptx::store_remote(slot + b * 512 + (t * 8 + g) * 16, sum[4 * b], sum[4 * b + 1], sum[4 * b + 2], sum[4 * b + 3],
                        barrier);
    }
    if (t == 0) ptx::store_remote(slot + Plan::kScalesAt + g * 4, record.scale[group], barrier);
  }

  // One CTA: its warps say that their sums of the pass stand, whether they had any.
  __device__ __forceinline__ void say_sent() const {
    __syncwarp();
    if (lane_ == 0) ptx::barrier_arrive(at_.base + Plan::kSumsAt + ((passes_ & 1) * 4 + slot_) * 8);
  }

  // final = fmaf(s_g, acc, final) over the groups of a pass. Thread 16 * token + row of the quarter.
  __device__ __forceinline__ void chain(const WorkItem& w, int pass, float (&total)[Plan::kBlocks]) const {
    if (!chains()) return;
    const uint32_t number = passes_ - 1;
    const int records = min(stride(), args_.k_records - pass * stride());
    const uint32_t barrier = at_.base + Plan::kSumsAt + ((number & 1) * 4 + sharer_) * 8;
    const int slots = records * Plan::kGroups;
    if (at_.ctas > 1 && thread_ == 0) ptx::barrier_expect(barrier, slots * ((w.num_rows + 1) / 2 * 128 + 32));
    // Pairs with the expect above and the stores of send(), or with say_sent().
    ptx::barrier_wait_cluster(barrier, number / 2 & 1);
    const int row = thread_ % 16;
    const uint8_t* slot = at_.shared + Plan::kSlotsAt + (number & 1) * Plan::kBufferBytes +
                          sharer_ * stride() * Plan::kGroups * Plan::kSlotBytes;
    const int value = thread_ / 32 * 128 + row % 8 * 16 + row / 8 * 8 + thread_ / 16 % 2 * 4;
    const int scale = Plan::kScalesAt + row % 8 * 4 + row / 8 * 2;
#pragma unroll 4
    for (int s = 0; s < slots; ++s, slot += Plan::kSlotBytes) {
      const float factor =
          __uint_as_float(static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(slot + scale)) << 16);
#pragma unroll
      for (int b = 0; b < Plan::kBlocks; ++b) {
        total[b] = __fmaf_rn(factor, *reinterpret_cast<const float*>(slot + b * 512 + value), total[b]);
      }
    }
    __syncwarp();
    // To every CTA that sends to this quarter; pairs with the wait in multiply_and_send().
    const uint32_t read = at_.base + Plan::kFreeAt + ((number & 1) * 4 + own_quarter()) * 8;
    if (at_.ctas == 1) {
      if (lane_ == 0) ptx::barrier_arrive(read);
    } else if (lane_ < at_.ctas) {
      ptx::barrier_arrive_in(read, lane_);
    }
  }

  // sa * 512 of this thread's rows.
  __device__ __forceinline__ void load_factors(const WorkItem& w, float (&factor)[Plan::kBlocks]) const {
#pragma unroll
    for (int b = 0; b < Plan::kBlocks; ++b) {
      const int token = thread_ / 16 + 8 * b;
      factor[b] = 0.0f;
      if (token < w.num_rows) factor[b] = source_.scale(w, token) * 512.0f;
    }
  }

  __device__ __forceinline__ void store(const WorkItem& w, const float (&total)[Plan::kBlocks],
                                        const float (&factor)[Plan::kBlocks]) const {
    const int row = thread_ % 16;
    const int n = w.row_tile * layout::kRecordRows + own_quarter() * 16 + row;
    const bool gated = args_.output == GemmOutput::kActivated && args_.activation.gated();
    const float bias = args_.bias != nullptr ? args_.bias[static_cast<int64_t>(w.expert) * args_.padded_n + n] : 0.0f;
#pragma unroll
    for (int b = 0; b < Plan::kBlocks; ++b) {
      const int token = thread_ / 16 + 8 * b;
      float y = total[b] * factor[b];
      if (args_.bias != nullptr) y = y + bias;
      const float up = __shfl_down_sync(0xffffffffu, y, 8);  // row + 8: up of the gate in row, where there are gates
      if (token >= w.num_rows || n >= args_.n || (gated && row >= 8)) continue;
      if (args_.output == GemmOutput::kActivated) y = numerics::activation_f32(args_.activation, y, gated ? up : 0.0f);
      const int64_t column = gated ? n / 16 * 8 + row : n;
      const int64_t out = (static_cast<int64_t>(w.first_row) + token) * args_.out_pitch + column;
      if (args_.output == GemmOutput::kRowsF32) {
        static_cast<float*>(args_.out)[out] = numerics::canonical(y);
      } else {
        static_cast<uint16_t*>(args_.out)[out] = static_cast<uint16_t>(ptx::bf16_pair(y, 0.0f));
      }
    }
  }

  const GemmArguments& args_;
  const SplitPlace& at_;
  SplitSource<Plan> source_;
  int sharer_, thread_, lane_;
  uint32_t target_;  // from an address here to the same one in the CTA that owns this warp's rows
  int slot_;         // which of its quarters they are
  RingPlace<Plan::kStages> ring_;
  uint32_t passes_ = 0, rounds_ = 0;  // so far, over all items
};

template <typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kCtas)
    w4a8_split_kernel(const __grid_constant__ GemmArguments args, const __grid_constant__ SplitArguments in, int ctas) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const SplitPlace at{shared, ptx::shared_address(shared), ctas, ctas >> 1, ctas > 1 ? ptx::cluster_rank() : 0};
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::barrier_init(at.base + Plan::kFullAt + s * 8, 1);
      ptx::barrier_init(at.base + Plan::kEmptyAt + s * 8, Plan::kConsumerThreads / 32);
    }
    for (int i = 0; i < 2 * 4; ++i) {
      // One expect and the bytes of st.async; one CTA: a warp of every sharer.
      ptx::barrier_init(at.base + Plan::kSumsAt + i * 8, ctas > 1 ? 1 : Plan::kSharers);
      ptx::barrier_init(at.base + Plan::kFreeAt + i * 8, 4);  // the warps of the warpgroup that chains
    }
    ptx::fence_barrier_init();
  }
  // The barriers stand, in the neighbours, too.
  if (ctas > 1) {
    ptx::cluster_meet();
  } else {
    __syncthreads();
  }
  if (warp >= Plan::kConsumerThreads / 32) {
    if (threadIdx.x == Plan::kConsumerThreads) split_produce<Plan>(args, at);
  } else {
    if (!args.list_is_known) ptx::wait_for_predecessor();
    const WorkList<Plan> work(args);
    SplitSharer<Plan> sharer(args, in, at, warp / 4, static_cast<int>(threadIdx.x) % 128);
    for (int item = at.first_item(); item < work.num_items; item += at.item_stride()) sharer.run(work, item);
    ptx::wait_for_predecessor();  // of a CTA without an item
    ptx::let_successor_start();
  }
  // A CTA stays until its neighbours have made their last store and arrival in it.
  if (ctas > 1) ptx::cluster_meet();
}

}  // namespace quadrille::kernels::cuda
