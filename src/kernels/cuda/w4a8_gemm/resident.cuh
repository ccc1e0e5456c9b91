// SPDX-License-Identifier: Apache-2.0
// The plain tile of 8 tokens for experts with few rows: the consumers themselves put the codes of an item's rows into
// shared memory, all of K at once, where they gather them by slots or quantise bf16 rows. Nothing but weights goes
// through the ring, so these are on their way before the predecessor has ended.
#pragma once

#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/moe/warp.cuh"
#include "kernels/cuda/ptx/remote_store.cuh"
#include "kernels/cuda/w4a8_gemm/kernel.cuh"
#include "kernels/cuda/w4a8_gemm/split_place.cuh"
#include "numerics/act_quant.h"

namespace quadrille::kernels::cuda {

template <SplitInput Input>
struct ResidentPlan : GemmPlan<0, Arithmetic::kExact, 128> {
  static constexpr bool kResident = true;
  static constexpr SplitInput kInput = Input;
  static constexpr int kWeightsAt = 0;
  static constexpr int kStagingAt = kStages * kRecordBytes;
  static constexpr int kScalesAt = kStagingAt + kStagingBytes;  // [kTokens] of the rows' codes
  static constexpr int kMaximaAt = kScalesAt + kTokens * 4;     // [kTokens][4] largest magnitude of each warp
  static constexpr int kBarriersAt = kMaximaAt + kTokens * 16;
  static constexpr int kTokensAt = (kBarriersAt + kStages * 16 + 1023) / 1024 * 1024;  // [k records] 128-byte swizzle
  static_assert(kWarpgroups == 1 && kStagingAt % 16 == 0 && kMaximaAt % 16 == 0 && kBarriersAt % 8 == 0);
  static constexpr int shared_bytes(int k_records) { return kTokensAt + k_records * kTokenBytes; }
};

template <typename Plan>
class ResidentRows {
 public:
  __device__ __forceinline__ ResidentRows(const GemmArguments& args, const SplitArguments& in, uint8_t* shared)
      : args_(args), in_(in), shared_(shared), thread_(static_cast<int>(threadIdx.x)) {}

  // All threads of the warpgroup. The rows of the item before have been multiplied by this thread's warp. Not `counts`:
  // as if all rows were zero, and nothing is read; so the code is there when they are.
  __device__ __forceinline__ void bring(const WorkItem& w, bool counts) {
    if (w.first_row == held_) return;
    if (held_ >= 0) ptx::named_barrier<1, 128>();  // and by the other warps
    if (counts) held_ = w.first_row;
    if constexpr (Plan::kInput == SplitInput::kGathered) {
      for (int row = 0; row < w.num_rows; ++row) gather(w, row);
    } else {
      for (int row = 0; row < w.num_rows; row += kAtOnce) quantise(w, row, counts);
    }
    ptx::fence_async_shared();     // the products read through the asynchronous proxy
    ptx::named_barrier<1, 128>();  // codes and scales stand
  }

 private:
  static constexpr int kAtOnce = 4;  // rows whose loads do not wait for each other
  static constexpr int kVectors = layout::kRecordK / kVectorColumns;

  // Where the eight codes of a vector of a row go.
  __device__ __forceinline__ uint8_t* place(int row, int vector) const {
    const int piece = vector % kVectors / 2;
    return shared_ + Plan::kTokensAt + vector / kVectors * Plan::kTokenBytes + row * layout::kRecordK +
           (piece ^ (row % 8)) * 16 + vector % 2 * 8;
  }
  __device__ __forceinline__ float* scales() const { return reinterpret_cast<float*>(shared_ + Plan::kScalesAt); }

  __device__ __forceinline__ void gather(const WorkItem& w, int row) const {
    const int64_t token = in_.source_row[w.first_row + row] / in_.source_divisor;
    const uint4* const codes = reinterpret_cast<const uint4*>(args_.act + token * args_.act_pitch);
    const int there = static_cast<int>(args_.act_pitch) / 16;
    for (int i = thread_; i < args_.k_records * 8; i += 128) {
      *reinterpret_cast<uint4*>(place(row, 2 * i)) = i < there ? codes[i] : make_uint4(0, 0, 0, 0);
    }
    if (thread_ == 0) scales()[row] = args_.act_scale[token];
  }

  // Rows [first, first + kAtOnce) of the tile, as far as there are.
  __device__ __forceinline__ void quantise(const WorkItem& w, int first, bool counts) const {
    const int vectors = in_.k / kVectorColumns;
    const int read = counts ? vectors : 0;
    const uint4* const x =
        reinterpret_cast<const uint4*>(in_.x) + (w.first_row + first) * static_cast<int64_t>(vectors);
    const int count = min(kAtOnce, w.num_rows - first);
    uint4 held[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      held[r] = counts && r < count && thread_ < vectors ? x[r * vectors + thread_] : make_uint4(0, 0, 0, 0);
    }
    uint32_t* const maxima = reinterpret_cast<uint32_t*>(shared_ + Plan::kMaximaAt);
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      float absmax = absmax_of(0.0f, held[r]);
      for (int i = thread_ + 128; r < count && i < read; i += 128) absmax = absmax_of(absmax, x[r * vectors + i]);
      // Magnitudes without NaN order like their bits.
      const uint32_t of_warp = __reduce_max_sync(kWholeWarp, numerics::bits_of(absmax));
      if (thread_ % 32 == 0 && r < count) maxima[(first + r) * 4 + thread_ / 32] = of_warp;
    }
    ptx::named_barrier<1, 128>();  // the maxima of all warps stand
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      if (r >= count) continue;
      const uint4 m = *reinterpret_cast<const uint4*>(maxima + (first + r) * 4);
      const float scale = numerics::act_scale_of_absmax(numerics::float_of(max(max(m.x, m.y), max(m.z, m.w))));
      const Divisor divisor = divisor_of(scale);
      if (thread_ == 0) scales()[first + r] = scale;
      if (thread_ < vectors) store(first + r, thread_, held[r], divisor);
      for (int i = thread_ + 128; i < read; i += 128) store(first + r, i, x[r * vectors + i], divisor);
      for (int i = vectors + thread_; i < args_.k_records * kVectors; i += 128) {
        *reinterpret_cast<uint2*>(place(first + r, i)) = make_uint2(0, 0);
      }
    }
  }
  static __device__ __forceinline__ float absmax_of(float absmax, const uint4& v) {
    float x[8];
    unpack(v, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) absmax = numerics::absmax_step(absmax, x[j]);
    return absmax;
  }
  __device__ __forceinline__ void store(int row, int i, const uint4& v, const Divisor& divisor) const {
    float x[8];
    unpack(v, x);
    *reinterpret_cast<uint2*>(place(row, i)) = e4m3_codes(x, divisor);
  }

  const GemmArguments& args_;
  const SplitArguments& in_;
  uint8_t* shared_;
  int thread_;
  int32_t held_ = -1;  // first row of those in shared memory
};

template <typename Plan>
__device__ __forceinline__ void consume_resident(const GemmArguments& args, const SplitArguments& in, uint8_t* shared,
                                                 uint32_t base) {
  if (!args.list_is_known) ptx::wait_for_predecessor();
  const WorkList<Plan> work(args);
  const int thread = static_cast<int>(threadIdx.x);
  MainLoop<Plan> loop(args, shared, base, base + Plan::kBarriersAt, base + Plan::kBarriersAt + Plan::kStages * 8, 0,
                      thread);
  Epilogue<Plan> epilogue(args, shared, 0, thread);
  ResidentRows<Plan> rows(args, in, shared);
  RingPlace<Plan::kStages> place;
  for (int item = work.first_item(); item < work.num_items; item += work.item_stride()) {
    const WorkItem w = work.at(item);
    const bool is_early = Plan::kInput == SplitInput::kRows && args.list_is_known && item == work.first_item();
#pragma unroll 1
    for (int pass = is_early ? 0 : 1; pass < 2; ++pass) {
      if (pass == 1) {
        // Only the list has been read so far, and that where it is older.
        ptx::wait_for_predecessor();
        ptx::let_successor_start();
      }
      rows.bring(w, pass == 1);
    }
    float total[Plan::kTokens / 2];
    loop.run(work, item, place, total);
    epilogue.store(work.at(item), total);
  }
  ptx::wait_for_predecessor();  // of a CTA without an item
  ptx::let_successor_start();
}

template <typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, Plan::kCtas)
    w4a8_resident_kernel(const __grid_constant__ GemmArguments args, const __grid_constant__ SplitArguments in) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const uint32_t base = ptx::shared_address(shared);
  const uint32_t full = base + Plan::kBarriersAt;
  const uint32_t empty = full + Plan::kStages * 8;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::barrier_init(full + s * 8, 1);
      ptx::barrier_init(empty + s * 8, Plan::kConsumerThreads / 32);
    }
    ptx::fence_barrier_init();
  }
  __syncthreads();  // the barriers are ready
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp >= Plan::kConsumerThreads / 32) {
    if (threadIdx.x == Plan::kConsumerThreads) produce<Plan>(args, nullptr, base, full, empty);
  } else {
    consume_resident<Plan>(args, in, shared, base);
  }
}

}  // namespace quadrille::kernels::cuda
