// SPDX-License-Identifier: Apache-2.0
// Where a CTA of the shared form takes its codes from: codes of its rows, or bf16 rows that it quantises itself. A step
// of few tokens is latency: what every CTA does again costs less than a kernel in front of the product. Bits are those
// of quantize.cu.
#pragma once

#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/moe/warp.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/w4a8_gemm/split_place.cuh"
#include "numerics/act_quant.h"

namespace quadrille::kernels::cuda {

// Barriers of a CTA by number; 1..4 are those of the warpgroups.
inline constexpr int kSharersBarrier = 5;

// A warpgroup's view of the input; a thread asks for pieces of 16 codes of one row of the tile, and for the scales of
// the rows whose sums it ends.
template <typename Plan, SplitInput = Plan::kInput>
class SplitSource {
 public:
  __device__ __forceinline__ SplitSource(const GemmArguments& args, const SplitArguments&, const SplitPlace&, int)
      : args_(args) {}

  // Behind the wait for the predecessor and the conversion of the first record.
  __device__ __forceinline__ void finish(const WorkItem&) {}

  __device__ __forceinline__ uint4 piece(const WorkItem& w, int row, int64_t column) const {
    if (row >= w.num_rows || column >= args_.act_pitch) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(args_.act + (w.first_row + row) * args_.act_pitch + column);
  }
  __device__ __forceinline__ float scale(const WorkItem& w, int row) const {
    return args_.act_scale[static_cast<int64_t>(w.first_row) + row];
  }

 private:
  const GemmArguments& args_;
};

// Rows in shared memory, of which codes are made where they are asked for.
template <typename Plan>
class MadeCodes {
 public:
  __device__ __forceinline__ uint4 piece(const WorkItem& w, int row, int64_t column) const {
    const int vector = static_cast<int>(column) / kVectorColumns;
    const int vectors = in_.k / kVectorColumns;
    if (row >= w.num_rows || vector >= vectors) return make_uint4(0, 0, 0, 0);
    const uint4* const rows = reinterpret_cast<const uint4*>(made_.rows) + row * vectors + vector;
    const Divisor divisor = made_.divisor[sharer_][row];
    const uint2 low = codes_of(rows[0], divisor);
    const uint2 high = vector + 1 < vectors ? codes_of(rows[1], divisor) : make_uint2(0, 0);
    return make_uint4(low.x, low.y, high.x, high.y);
  }
  __device__ __forceinline__ float scale(const WorkItem&, int row) const { return made_.scale[sharer_][row]; }

 protected:
  __device__ __forceinline__ MadeCodes(const SplitArguments& in, const SplitPlace& at, int sharer)
      : in_(in), made_(*reinterpret_cast<MadeRows*>(at.shared + Plan::kMadeAt)), sharer_(sharer) {}

  // The largest magnitude of this thread's values of row t. Magnitudes without NaN order like their bits.
  __device__ __forceinline__ void note_maximum(int t, float absmax) {
    const uint32_t of_warp = __reduce_max_sync(kWholeWarp, numerics::bits_of(absmax));
    if (threadIdx.x % 32 == 0) made_.maxima[t][threadIdx.x / 32] = of_warp;
  }
  // All rows and maxima are written. A warp of each warpgroup makes the scale of a row.
  __device__ __forceinline__ void close(int num_rows) {
    ptx::named_barrier<kSharersBarrier, Plan::kConsumerThreads>();  // rows and maxima stand
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = static_cast<int>(threadIdx.x) % 128 / 32;
    if (row < num_rows) {
      const uint32_t own = lane < Plan::kConsumerThreads / 32 ? made_.maxima[row][lane] : 0u;
      const uint32_t most = __reduce_max_sync(kWholeWarp, own);
      const float scale = numerics::act_scale_of_absmax(numerics::float_of(most));
      if (lane == 0) {
        made_.scale[sharer_][row] = scale;
        made_.divisor[sharer_][row] = divisor_of(scale);
      }
    }
    ptx::warpgroup_barrier(1 + sharer_);  // the warpgroup's scales stand
  }

  const SplitArguments& in_;
  MadeRows& made_;
  int sharer_;

 private:
  static __device__ __forceinline__ uint2 codes_of(const uint4& v, const Divisor& divisor) {
    float x[8];
    unpack(v, x);
    return e4m3_codes(x, divisor);
  }
};

template <typename Plan>
class SplitSource<Plan, SplitInput::kRows> : public MadeCodes<Plan> {
 public:
  __device__ __forceinline__ SplitSource(const GemmArguments&, const SplitArguments& in, const SplitPlace& at,
                                         int sharer)
      : MadeCodes<Plan>(in, at, sharer) {}

  __device__ __forceinline__ void finish(const WorkItem& w) {
    if (w.first_row == held_) return;
    // Nobody reads the rows of the item before.
    if (held_ >= 0) ptx::named_barrier<kSharersBarrier, Plan::kConsumerThreads>();
    held_ = w.first_row;
    const int vectors = this->in_.k / kVectorColumns;
    const uint4* const x = reinterpret_cast<const uint4*>(this->in_.x) + static_cast<int64_t>(w.first_row) * vectors;
    uint4* const rows = reinterpret_cast<uint4*>(this->made_.rows);
    // Copied without registers, which hold the first record of weights meanwhile.
    for (int t = 0; t < w.num_rows; ++t) {
      for (int i = static_cast<int>(threadIdx.x); i < vectors; i += Plan::kConsumerThreads) {
        ptx::copy16_async(ptx::shared_address(rows + t * vectors + i), x + t * vectors + i, true);
      }
    }
    ptx::copies_commit();
    ptx::copies_wait<0>();  // a thread goes on with what it has copied itself
    for (int t = 0; t < w.num_rows; ++t) {
      float absmax = 0.0f;
      for (int i = static_cast<int>(threadIdx.x); i < vectors; i += Plan::kConsumerThreads) {
        float v[8];
        unpack(rows[t * vectors + i], v);
#pragma unroll
        for (int j = 0; j < 8; ++j) absmax = numerics::absmax_step(absmax, v[j]);
      }
      this->note_maximum(t, absmax);
    }
    this->close(w.num_rows);
  }

 private:
  int32_t held_ = -1;  // first row of those in shared memory
};

}  // namespace quadrille::kernels::cuda
