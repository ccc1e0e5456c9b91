// SPDX-License-Identifier: Apache-2.0
// Where a CTA of the shared form takes its codes from: codes of its rows (as the plain form), codes of tokens that its
// slots name, bf16 rows that it quantises itself, or a residual stream of which it makes the norm itself. A step of few
// tokens is latency: what every CTA does again costs less than a kernel in front of the product. Bits are those of
// quantize.cu and add_norm.cu.
#pragma once

#include "kernels/cuda/decoder/norm_row.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/w4a8_gemm/split_place.cuh"

namespace quadrille::kernels::cuda {

// Barriers of a CTA by number; 1..4 are those of the warpgroups.
inline constexpr int kSharersBarrier = 5, kSumsBarrier = 6, kNormsBarrier = 7;

// Eight or four bf16 columns of a row.
__device__ __forceinline__ void unpack_half(const uint2& v, float (&x)[4]) {
  const uint32_t word[2] = {v.x, v.y};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    x[2 * i] = numerics::float_of(word[i] << 16);
    x[2 * i + 1] = numerics::float_of(word[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint2 pack_half(const float (&x)[4]) {
  const auto pair = [](float low, float high) {
    return numerics::bf16_from_f32(low) | static_cast<uint32_t>(numerics::bf16_from_f32(high)) << 16;
  };
  return make_uint2(pair(x[0], x[1]), pair(x[2], x[3]));
}

// A warpgroup's view of the input; a thread asks for pieces of 16 codes of one row of the tile, and for the scales of
// the rows whose sums it ends.
template <typename Plan, SplitInput = Plan::kInput>
class SplitSource {
 public:
  __device__ __forceinline__ SplitSource(const GemmArguments& args, const SplitArguments&, const SplitPlace&, int)
      : args_(args) {}

  // An item begins; its list stands.
  __device__ __forceinline__ void find(const WorkItem&) {}
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

  __device__ __forceinline__ void find(const WorkItem&) {}
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

// What all roles of a CTA that makes a norm know. One matrix without tiles: all items have the same rows. Behind the
// rows lie the weights of the norm; a thread has the same four columns of everything, so that all rows of a combine are
// in flight at once, and only sums, scales and finished rows are handed over.
template <typename Plan>
struct NormedRows {
  static constexpr int kColumns = 4;
  static constexpr int kMeeting = Plan::kConsumerThreads + 32;  // the warpgroups and the warp of split_norms()
  const DeviceAddNorm& p;
  MadeRows& made;
  int vectors;

  __device__ __forceinline__ NormedRows(const SplitArguments& in, const SplitPlace& at)
      : p(in.norm), made(*reinterpret_cast<MadeRows*>(at.shared + Plan::kMadeAt)), vectors(in.k / kColumns) {}

  __device__ __forceinline__ uint2* vector_of(int row, int i) const {
    return reinterpret_cast<uint2*>(made.rows) + row * vectors + i;
  }

  // Weights, slots and weights of routes (older than the predecessor: check_norm()).
  __device__ __forceinline__ void fetch_early() const {
    const int own = static_cast<int>(threadIdx.x);
    const uint2* const weight = reinterpret_cast<const uint2*>(p.weight);
    for (int i = own; i < vectors; i += Plan::kConsumerThreads) {
      *vector_of(static_cast<int>(p.num_rows), i) = __ldg(weight + i);
    }
    if (p.combine.rows == nullptr) return;
    if (own < p.num_rows * p.combine.top_k) {
      const float w = p.combine.weight != nullptr ? p.combine.weight[own] : 1.0f;
      made.routes[own] = make_uint2(static_cast<uint32_t>(p.combine.slot[own]), numerics::bits_of(w));
    }
    ptx::named_barrier<kSharersBarrier, Plan::kConsumerThreads>();  // the routes stand
  }

  // Sums of the residual stream; behind the wait for the predecessor.
  __device__ __forceinline__ void add() const {
    for (int t = 0; t < p.num_rows; ++t) {
      for (int i = static_cast<int>(threadIdx.x); i < vectors; i += Plan::kConsumerThreads) {
        *vector_of(t, i) = sum_at(t, i);
      }
    }
    ptx::named_arrive<kSumsBarrier, kMeeting>();  // pairs with split_norms()
  }

 private:
  __device__ __forceinline__ uint2 sum_at(int t, int i) const {
    const int place = t * vectors + i;
    const uint2 v = reinterpret_cast<const uint2*>(p.x)[place];
    if (p.combine.rows == nullptr && p.update == nullptr) return v;
    float x[kColumns], y[kColumns];
    unpack_half(p.update != nullptr ? reinterpret_cast<const uint2*>(p.update)[place] : combined(t, i), y);
    unpack_half(v, x);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) x[j] = x[j] + y[j];
    const uint2 sum = pack_half(x);
    if (blockIdx.x == 0) reinterpret_cast<uint2*>(p.x_out)[place] = sum;
    return sum;
  }

  // The chain of combine.cu, rounded.
  __device__ __forceinline__ uint2 combined(int t, int i) const {
    float sum[kColumns] = {};
    const int top_k = static_cast<int>(p.combine.top_k);
    const uint2* const routes = made.routes + t * top_k;
    for (int first = 0; first < top_k; first += kRowsAtOnce) {
      uint2 row[kRowsAtOnce];
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) {
        if (first + j >= top_k) continue;
        const auto slot = static_cast<int32_t>(routes[first + j].x);
        if (slot >= 0) row[j] = reinterpret_cast<const uint2*>(p.combine.rows)[slot * vectors + i];
      }
#pragma unroll
      for (int j = 0; j < kRowsAtOnce; ++j) {
        if (first + j >= top_k || static_cast<int32_t>(routes[first + j].x) < 0) continue;
        float x[kColumns];
        unpack_half(row[j], x);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          sum[c] = numerics::combine_step(numerics::float_of(routes[first + j].y), x[c], sum[c]);
        }
      }
    }
    return pack_half(sum);
  }
};

template <typename Plan>
class SplitSource<Plan, SplitInput::kNormed> : public MadeCodes<Plan> {
 public:
  __device__ __forceinline__ SplitSource(const GemmArguments&, const SplitArguments& in, const SplitPlace& at,
                                         int sharer)
      : MadeCodes<Plan>(in, at, sharer), rows_(in, at) {}

  __device__ __forceinline__ void find(const WorkItem&) {}
  __device__ __forceinline__ void finish(const WorkItem& w) {
    if (is_made_) return;
    is_made_ = true;
    ptx::named_barrier<kNormsBarrier, NormedRows<Plan>::kMeeting>();  // pairs with split_norms()
    for (int t = 0; t < w.num_rows; ++t) {
      const float scale = this->made_.norm_scale[t];
      float absmax = 0.0f;
      for (int i = static_cast<int>(threadIdx.x); i < rows_.vectors; i += Plan::kConsumerThreads) {
        float x[kColumns], weight[kColumns];
        unpack_half(*rows_.vector_of(t, i), x);
        unpack_half(*rows_.vector_of(w.num_rows, i), weight);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          x[j] = numerics::rms_norm_value(x[j], scale, weight[j], true);
          absmax = numerics::absmax_step(absmax, x[j]);
        }
        *rows_.vector_of(t, i) = pack_half(x);
      }
      this->note_maximum(t, absmax);
    }
    this->close(w.num_rows);
  }

 private:
  static constexpr int kColumns = NormedRows<Plan>::kColumns;
  NormedRows<Plan> rows_;
  bool is_made_ = false;
};

// The warp that makes the 32 chains of squares of each row while the others convert weights.
template <typename Plan>
__device__ __forceinline__ void split_norms(const SplitArguments& in, const SplitPlace& at) {
  const NormedRows<Plan> rows(in, at);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ptx::named_barrier<kSumsBarrier, NormedRows<Plan>::kMeeting>();  // pairs with add()
  for (int t = 0; t < rows.p.num_rows; ++t) {
    const float sum = warp_tree_sum(squares_of_lane(rows.made.rows + t * in.k, in.k, lane));
    if (lane == 0) rows.made.norm_scale[t] = numerics::rms_scale(sum, in.k, rows.p.eps);
  }
  __syncwarp();
  ptx::named_arrive<kNormsBarrier, NormedRows<Plan>::kMeeting>();  // pairs with finish()
}

}  // namespace quadrille::kernels::cuda
