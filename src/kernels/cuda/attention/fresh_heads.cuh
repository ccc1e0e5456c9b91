// SPDX-License-Identifier: Apache-2.0
// The heads of a fused projection that an attention kernel makes for itself, a warp a head: norm, rotary embedding, the
// bits of split_heads and so of numerics/elementwise.h. Lane l has dimensions l, l + 32, ..., which are its chain of
// the sum of squares, and from 64 dimensions on both values of a rotary pair. Called by cluster_singles.cuh and
// singles.cuh.
#pragma once

#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/moe/warp.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {

// One head of one token: what is older than the projection is read by load_tables(), the rest happens in make().
template <int Dim>
class FreshHead {
 public:
  static constexpr int kHeld = Dim / 32;  // dimensions of a lane

  // norm: weights [Dim], null: none. `rotates`: by the angles of `position`.
  __device__ __forceinline__ void load_tables(const DeviceQkv& p, const uint16_t* norm, bool rotates,
                                              int64_t position) {
    lane_ = static_cast<int>(threadIdx.x) % 32;
    eps_ = p.eps;
    has_norm_ = norm != nullptr;
    rotates_ = rotates && p.rotary_dim > 0;
#pragma unroll
    for (int m = 0; m < kHeld; ++m) weight_[m] = has_norm_ ? __ldg(norm + lane_ + 32 * m) : uint16_t{0};
#pragma unroll
    for (int a = 0; a < kAngles; ++a) {
      const int64_t at = position * (Dim / 2) + lane_ % (Dim / 2) + 32 * a;
      cos_[a] = rotates_ ? __ldg(p.cos + at) : 1.0f;
      sin_[a] = rotates_ ? __ldg(p.sin + at) : 0.0f;
    }
  }

  // Starts the loads of the head in `x`.
  __device__ __forceinline__ void fetch(const uint16_t* x) {
#pragma unroll
    for (int m = 0; m < kHeld; ++m) x_[m] = x[lane_ + 32 * m];
  }
  // It becomes bf16 values of dimensions lane + 32 m. All lanes of the warp.
  __device__ __forceinline__ void make(uint16_t (&made)[kHeld]) const {
    float v[kHeld];
#pragma unroll
    for (int m = 0; m < kHeld; ++m) v[m] = numerics::bf16_to_f32(x_[m]);
    if (has_norm_) {
      float sum = 0.0f;
#pragma unroll
      for (int m = 0; m < kHeld; ++m) sum = __builtin_fmaf(v[m], v[m], sum);
      const float scale = numerics::rms_scale(warp_tree_sum(sum), Dim, eps_);
#pragma unroll
      for (int m = 0; m < kHeld; ++m) v[m] = v[m] * scale;
      round(v);
#pragma unroll
      for (int m = 0; m < kHeld; ++m) v[m] = v[m] * numerics::bf16_to_f32(weight_[m]);
      round(v);
    }
    if (rotates_) rotate(v);
    round(v);
#pragma unroll
    for (int m = 0; m < kHeld; ++m) made[m] = static_cast<uint16_t>(numerics::bits_of(v[m]) >> 16);
  }

 private:
  static constexpr int kAngles = Dim == 128 ? 2 : 1;

  // To bf16, two values an instruction.
  __device__ __forceinline__ static void round(float (&v)[kHeld]) {
#pragma unroll
    for (int m = 0; m < kHeld; m += 2) {
      const uint32_t pair = ptx::bf16_pair(v[m], m + 1 < kHeld ? v[m + 1] : 0.0f);
      v[m] = numerics::float_of(pair << 16);
      if (m + 1 < kHeld) v[m + 1] = numerics::float_of(pair & 0xffff0000u);
    }
  }
  // rope_first and rope_second before their rounding.
  __device__ __forceinline__ void rotate(float (&v)[kHeld]) const {
    if constexpr (Dim == 32) {
      const float other = __shfl_xor_sync(kWholeWarp, v[0], 16);
      v[0] = v[0] * cos_[0] + other * (lane_ < 16 ? -sin_[0] : sin_[0]);
    } else {
#pragma unroll
      for (int a = 0; a < kAngles; ++a) {
        const float first = v[a], second = v[a + kAngles];
        v[a] = first * cos_[a] - second * sin_[a];
        v[a + kAngles] = second * cos_[a] + first * sin_[a];
      }
    }
  }

  int lane_;
  bool has_norm_, rotates_;
  float eps_;
  uint16_t weight_[kHeld], x_[kHeld];
  float cos_[kAngles], sin_[kAngles];
};

// The heads of one token and KV head that a CTA makes, and where they stand in its shared memory.
struct FreshPlaces {
  int64_t token, position;
  int32_t kv, head_tile;
  int32_t fresh;     // positions up to the token's own that are of this step: 1 or 2
  bool has_fresh;    // their keys and values are made
  int32_t page;      // which gets the token's own; -1: another CTA does it
  int query_pitch;   // elements
  uint16_t* query;   // [packed rows, query_pitch]
  uint16_t* newest;  // [position, the one before] [key, value] [Dim]
  // Block that has the position, the one before, where keys and values go at once; null: they go to `newest`.
  uint16_t* own_tile;
  uint16_t* previous_tile;

  __device__ __forceinline__ uint16_t* tile(int back) const { return back == 0 ? own_tile : previous_tile; }
};

// Head `number` of a CTA: its query rows, then key and value of the positions of this step, newest first.
template <int Dim>
class HeadTask {
 public:
  __device__ __forceinline__ static int count(const AttentionArguments& args, const FreshPlaces& places) {
    if (places.position < 0) return 0;
    return static_cast<int>(args.heads.packed()) + (places.has_fresh ? 2 * places.fresh : 0);
  }

  // Reads nothing that is younger than the predecessor.
  __device__ __forceinline__ void prepare(const AttentionArguments& args, const FreshPlaces& places, int number) {
    const DeviceQkv& p = args.p.projection;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = number - static_cast<int>(args.heads.packed());  // below 0: a query
    const int64_t kv_heads = p.pages.num_kv_heads;
    const bool is_query = row < 0;
    const int back = is_query ? 0 : row / 2, kind = is_query ? 0 : row % 2;
    const int64_t head =
        is_query ? args.heads.head_at(places.kv, places.head_tile, number) : p.num_heads + kind * kv_heads + places.kv;
    from_ = head < 0 ? nullptr : p.qkv + (places.token - back) * p.qkv_pitch + head * Dim;
    to_ = is_query ? number * places.query_pitch : static_cast<int32_t>(places.newest - places.query) + row * Dim;
    const bool has_norm = p.norm == HeadNorm::kPerHead && kind == 0;
    head_.load_tables(p, has_norm ? (is_query ? p.q_norm : p.k_norm) : nullptr, kind == 0, places.position - back);
    page_ = nullptr;
    tile_ = 0;
    if (is_query) return;
    const layout::KvTile map{kv_heads, Dim};
    const int64_t place = (places.position - back) % kKeyBlock;
    at_ = static_cast<int32_t>(kind == 0 ? map.key_offset(0, place, lane) : map.value_offset(0, place, lane));
    if (places.tile(back) != nullptr) tile_ = static_cast<int32_t>(places.tile(back) - places.query);
    if (back != 0 || places.page < 0) return;
    page_ = p.pages.data + places.page * map.page_size() + places.kv * map.tile_size();
  }
  // Behind the wait.
  __device__ __forceinline__ void fetch() {
    if (from_ != nullptr) head_.fetch(from_);
  }
  // Behind fetch(), and where there is a tile, behind its copy.
  __device__ __forceinline__ void run(const FreshPlaces& places) const {
    if (from_ == nullptr) return;
    uint16_t made[kHeld];
    head_.make(made);
#pragma unroll
    for (int m = 0; m < kHeld; ++m) {
      if (tile_ != 0) {
        places.query[tile_ + at_ + m * kChunk] = made[m];
      } else {
        places.query[to_ + static_cast<int>(threadIdx.x) % 32 + 32 * m] = made[m];
      }
      if (page_ != nullptr) page_[at_ + m * kChunk] = made[m];
    }
  }
  __device__ __forceinline__ const uint16_t* tile(const FreshPlaces& places) const {
    return tile_ == 0 ? nullptr : places.query + tile_;
  }

 private:
  static constexpr int kHeld = FreshHead<Dim>::kHeld;
  static constexpr int kChunk = layout::KvTile::kChunkSize;  // dimensions l + 32 m are those of a lane
  static_assert(layout::KvTile::kChunkDims == 32);
  FreshHead<Dim> head_;
  const uint16_t* from_;
  int32_t to_;      // counted from places.query, as tile_ is
  uint16_t* page_;  // of the KV head, null: not written
  int32_t tile_;    // of the KV head in shared memory, 0: none
  int32_t at_;      // of dimension `lane`
};

// All heads of a CTA of few warps, a warp every one of them; the loads of kAtOnce are in flight together.
template <int Dim>
class HeadTasks {
 public:
  // From head `begin` on, which the warp has.
  __device__ __forceinline__ void prepare(const AttentionArguments& args, const FreshPlaces& places, int begin) {
    const int heads = HeadTask<Dim>::count(args, places);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (begin + k * warps() < heads) tasks_[k].prepare(args, places, begin + k * warps());
    }
  }
  // Behind prepare(number of the warp) and the wait.
  __device__ __forceinline__ void run(const AttentionArguments& args, const FreshPlaces& places) {
    const int heads = HeadTask<Dim>::count(args, places), warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll 1
    for (int begin = warp; begin < heads; begin += kAtOnce * warps()) {
      if (begin != warp) prepare(args, places, begin);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (begin + k * warps() < heads) tasks_[k].fetch();
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (begin + k * warps() < heads) tasks_[k].run(places);
      }
    }
  }

 private:
  static constexpr int kAtOnce = 1;  // more of a warp spill with heads of 32
  __device__ __forceinline__ static int warps() { return static_cast<int>(blockDim.x) / 32; }
  HeadTask<Dim> tasks_[kAtOnce];
};

// The step's own positions, into a block that was fetched before they were written; `first`: position of its first key.
// By `threads` threads, behind both halves; the caller orders it before the reads.
template <int Dim>
__device__ __forceinline__ void place_newest(const FreshPlaces& places, int64_t first, uint8_t* tile, int thread,
                                             int threads) {
  const layout::KvTile map{1, Dim};
  auto* to = reinterpret_cast<uint16_t*>(tile);
  for (int back = 0; back < places.fresh; ++back) {
    const int64_t place = places.position - back - first;
    if (place < 0 || place >= kKeyBlock || places.tile(back) != nullptr) continue;
    const uint16_t* from = places.newest + 2 * back * Dim;
    for (int d = thread; d < Dim; d += threads) {
      to[map.key_offset(0, place, d)] = from[d];
      to[map.value_offset(0, place, d)] = from[Dim + d];
    }
  }
}

}  // namespace quadrille::kernels::cuda
