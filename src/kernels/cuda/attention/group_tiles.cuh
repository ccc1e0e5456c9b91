// SPDX-License-Identifier: Apache-2.0
// Attention of tiles (prefill) for heads of up to 128 dimensions: wgmma, whose k16 step has the bits of mma.sync (and
// so of block.cuh). A CTA has 128 rows, each a token and a query head of one KV head; two warpgroups take 64 rows each,
// a warp beside them brings the blocks of keys and values. A warpgroup has the scores of the next block in flight while
// it folds a block, and the values of a block while it weighs the next.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/tile_item.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/warpgroup.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"

namespace quadrille::kernels::cuda {

template <int Dim>
struct GroupPlan {
  static constexpr int kGroups = 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);  // the last group brings blocks
  static constexpr int kGroupRegisters = 240;
  static constexpr int kBringerRegisters = 24;
  // Behind the values of a stage: a chunk of ones, whose columns make the sums of weights beside the sums of values.
  static constexpr int kChunkBytes = 4096;
  static constexpr int kStageBytes = Tile<Dim>::kBytes + kChunkBytes;
  static constexpr int kStages = Dim > 96 ? 5 : 6;
  static constexpr int kBarriersAt = kStages * kStageBytes;
  static constexpr int kSeenAt = kBarriersAt + 128;  // int2 [kRows]: keys that a row sees
  static constexpr int kSharedBytes = kSeenAt + kRows * 8;
};

// Where a walk through the ring of stages stands.
template <int Stages>
struct RingTurn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage < Stages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <int Dim>
struct GroupRing {
  using Plan = GroupPlan<Dim>;
  using Turn = RingTurn<Plan::kStages>;
  uint8_t* shared;

  __device__ __forceinline__ uint32_t full(const Turn& turn) const {
    return ptx::shared_address(shared) + Plan::kBarriersAt + static_cast<uint32_t>(turn.stage) * 8;
  }
  __device__ __forceinline__ uint32_t empty(const Turn& turn) const { return full(turn) + Plan::kStages * 8; }
  __device__ __forceinline__ uint8_t* tile(const Turn& turn) const { return shared + turn.stage * Plan::kStageBytes; }

  // All threads; the caller synchronises.
  __device__ void init() const {
    for (int s = 0; s < Plan::kStages; ++s) {
      uint4* ones = reinterpret_cast<uint4*>(shared + s * Plan::kStageBytes + Tile<Dim>::kBytes);
      constexpr uint32_t kOnes = 0x3f803f80u;
      for (int i = static_cast<int>(threadIdx.x); i < Plan::kChunkBytes / 16; i += Plan::kThreads) {
        ones[i] = make_uint4(kOnes, kOnes, kOnes, kOnes);
      }
    }
    ptx::fence_shared_writes();
    if (threadIdx.x != 0) return;
    for (Turn turn; turn.parity == 0; turn.advance()) {
      ptx::barrier_init(full(turn), 1);
      ptx::barrier_init(empty(turn), Plan::kGroups * 4);
    }
    ptx::fence_barrier_init();
  }
};

// Items of a CTA, one a round of the grid. Every other round goes the other way: the CTA with the longest item of a
// round has the shortest of the next.
struct ItemWalk {
  int round = 0;
  __device__ __forceinline__ int64_t item() const {
    const unsigned own = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return static_cast<int64_t>(round) * gridDim.x + own;
  }
  // The compiler keeps nothing of the item in registers across this.
  __device__ __forceinline__ void forget() { asm volatile("" : "+r"(round)); }
};

// One warp: the blocks of all items, in the order in which they are read.
template <int Dim>
__device__ __forceinline__ void bring_blocks(const AttentionArguments& args, int64_t items,
                                             const GroupRing<Dim>& ring) {
  const layout::KvTile map{args.p.pages.num_kv_heads, args.p.pages.head_dim};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  typename GroupRing<Dim>::Turn turn;
  for (ItemWalk walk; walk.item() < items; ++walk.round) {
    const TileItem item(args, walk.item());
    const uint16_t* pool = args.p.pages.data + item.kv * map.tile_size();
    const int count = static_cast<int>(item.blocks.count);
    for (int base = 0; base < count; base += 32) {
      const int32_t own_page = base + lane < count ? item.pages[base + lane] : 0;
      for (int i = 0; i < 32 && base + i < count; ++i, turn.advance()) {
        const int32_t page = __shfl_sync(kAllLanes, own_page, i);
        if (lane != 0) continue;
        ptx::barrier_wait(ring.empty(turn), turn.parity ^ 1);  // pairs with GroupRows::release
        ptx::barrier_expect(ring.full(turn), Tile<Dim>::kBytes);
        ptx::bulk_copy(ptx::shared_address(ring.tile(turn)), pool + page * map.page_size(), Tile<Dim>::kBytes,
                       ring.full(turn));
      }
      __syncwarp();
    }
  }
}

template <int Dim>
class GroupRows {
 public:
  using Ring = GroupRing<Dim>;
  using Turn = typename Ring::Turn;

  __device__ __forceinline__ GroupRows(const AttentionArguments& args, const Ring& ring, const TileItem& item)
      : args_(args),
        seen_(reinterpret_cast<int2*>(ring.shared + Ring::Plan::kSeenAt) + first_row()),
        count_(static_cast<int>(item.blocks.count)),
        start_(static_cast<int>(item.blocks.first) * kKeyBlock),
        last_key_(item.last_key()) {
    const int64_t head_dim = args.p.pages.head_dim;
    int first = 0, last = 0x7fffffff;
    __syncwarp();  // the item before has been read
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const TileRow row = tile_row(args, item.tile, item.kv, item.head_tile, first_row() + 8 * r);
      const int2 seen = make_int2(static_cast<int>(row.seen.first), static_cast<int>(row.seen.last));
      if (lane() % 4 == 0) seen_[8 * r] = seen;
      if (seen.y >= 0) {
        first = max(first, seen.x);
        last = min(last, seen.y);
      }
      const uint16_t* q =
          row.token < 0 ? nullptr : args.p.q + (row.token * args.p.num_heads + row.head) * head_dim;
#pragma unroll
      for (int c = 0; c < Dim / 32; ++c) {
        const uint4 piece = query_piece(q, 32 * c + 8 * (lane() % 4), head_dim);
        query_[2 * c][r] = piece.x;
        query_[2 * c][2 + r] = piece.y;
        query_[2 * c + 1][r] = piece.z;
        query_[2 * c + 1][2 + r] = piece.w;
      }
    }
    all_first_ = __reduce_max_sync(kAllLanes, first);
    all_last_ = __reduce_min_sync(kAllLanes, last);
    __syncwarp();  // what the warp's rows see stands
#pragma unroll
    for (int j = 0; j < Dim / 8; ++j) sum_[j][0] = sum_[j][1] = sum_[j][2] = sum_[j][3] = 0.0f;
  }

  // All blocks of the item; `turn` goes on to the next item's.
  __device__ __forceinline__ void add_blocks(const Ring& ring, Turn& turn) {
    if (count_ == 0) return;
    int start = start_;
    ptx::barrier_wait(ring.full(turn), turn.parity);
    begin_scores(ring, turn);
    ptx::wgmma_wait<0>();
    soften(start);
    powers_to_weights(score_, weight_);
    float top[2];
    Turn next = turn;
    next.advance();
    if (count_ > 1) ptx::barrier_wait(ring.full(next), next.parity);
    for (int i = 0; i + 1 < count_; ++i) {
      begin_scores(ring, next);
      if (i > 0) fold(start - kKeyBlock, top);
      begin_values(ring, turn);
      top[0] = top_[0];
      top[1] = top_[1];
      start += kKeyBlock;
      ptx::wgmma_wait<1>();
      soften(start);
      const Turn done = turn;
      turn = next;
      next.advance();
      // Here for its branch, too: the assembler would move what stands above behind the wait for the values.
      if (i + 2 < count_) ptx::barrier_wait(ring.full(next), next.parity);
      ptx::wgmma_wait<0>();
      ptx::pin(flat(block_sum_));
      release(ring, done);
      powers_to_weights(score_, weight_);
    }
    if (count_ > 1) fold(start - kKeyBlock, top);
    if (last_key_ < kKeyBlock - 1) clear_behind(ring, turn);
    begin_values(ring, turn);
    ptx::wgmma_wait<0>();
    ptx::pin(flat(block_sum_));
    release(ring, turn);
    fold(start, top_);
    turn.advance();
  }

  __device__ __forceinline__ void store(const TileItem& item) const {
    const int64_t head_dim = args_.p.pages.head_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const TileRow row = tile_row(args_, item.tile, item.kv, item.head_tile, first_row() + 8 * r);
      if (row.token < 0) continue;
      const bool padding = row.seen.last < 0;
      const float norm = running_[r].norm;
      uint16_t* out = args_.p.out + (row.token * args_.p.num_heads + row.head) * head_dim;
#pragma unroll
      for (int j = 0; j < Dim / 8; ++j) {
        const int dim = 8 * j + lane() % 4 * 2;
        if (dim >= head_dim) continue;
        const uint32_t pair = ptx::bf16_pair(sum_[j][2 * r] / norm, sum_[j][2 * r + 1] / norm);
        *reinterpret_cast<uint32_t*>(out + dim) = padding ? 0 : pair;
      }
    }
  }

 private:
  template <int Rows>
  __device__ __forceinline__ static float (&flat(float (&x)[Rows][4]))[Rows * 4] {
    return reinterpret_cast<float(&)[Rows * 4]>(x);
  }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Of the thread's two rows in the CTA; the other is 8 behind.
  // Read anew each time: what follows from it is not worth registers during the loop over blocks.
  __device__ __forceinline__ static int first_row() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread / 32 * 16 + thread % 32 / 4;
  }

  // score = q k of the block of `turn`, which is there, in flight.
  __device__ __forceinline__ void begin_scores(const Ring& ring, const Turn& turn) {
    const uint64_t keys = ptx::chunk_descriptor(ptx::shared_address(ring.tile(turn)), 16);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < Dim / 16; ++s) {
      ptx::wgmma_rows<kKeyBlock>(flat(score_), query_[s], keys + s / 2 * (4096 / 16) + s % 2 * 2, s > 0);
    }
    ptx::wgmma_commit();
  }
  // block_sum = weights * values, in flight.
  __device__ __forceinline__ void begin_values(const Ring& ring, const Turn& turn) {
    const uint32_t at = ptx::shared_address(ring.tile(turn)) + Tile<Dim>::kKeyBytes;
    const uint64_t values = ptx::chunk_descriptor(at, 4096);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      ptx::wgmma_columns<Dim + 8>(flat(block_sum_), weight_[s], values + s * (1024 / 16), s > 0);
    }
    ptx::wgmma_commit();
  }
  __device__ __forceinline__ void clear_behind(const Ring& ring, const Turn& turn) const {
    clear_values_behind<Dim>(ring.tile(turn), last_key_, static_cast<int>(threadIdx.x), 128 * Ring::Plan::kGroups);
    ptx::fence_shared_writes();
    ptx::named_barrier<1, 128 * Ring::Plan::kGroups>();  // clean before either warpgroup reads it
  }
  __device__ __forceinline__ static void release(const Ring& ring, const Turn& turn) {
    if (lane() == 0) ptx::barrier_arrive(ring.empty(turn));
  }

  // Scores of the block at position `start` become powers relative to top_.
  __device__ __forceinline__ void soften(int start) {
    ptx::pin(flat(score_));
    if (!all_see(start)) {
      SeenInBlock seen;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int2 keys = seen_[8 * r];
        seen.first[r] = keys.x - start;
        seen.last[r] = keys.y - start;
      }
      hide_unseen(seen, lane() % 4, score_);
    }
    scores_to_powers(score_, args_.scale2, top_);
  }
  // Every row of the warp that is used sees the whole block.
  __device__ __forceinline__ bool all_see(int start) const {
    return start >= all_first_ && start + kKeyBlock - 1 <= all_last_;
  }

  // Folds the block at `start`, whose maxima are `top`.
  __device__ __forceinline__ void fold(int start, const float (&top)[2]) {
    const bool whole = all_see(start);
    Fold factors[2];
    bool sees[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sees[r] = whole;
      if (!whole) {
        const int2 keys = seen_[8 * r];
        sees[r] = keys.x < start + kKeyBlock && keys.y >= max(start, keys.x);
      }
      Running next = running_[r];
      factors[r] = fold_block(next, top[r], block_sum_[Dim / 8][2 * r]);
      if (sees[r]) running_[r] = next;
    }
#pragma unroll
    for (int j = 0; j < Dim / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float next = folded(sum_[j][i], factors[i / 2], block_sum_[j][i]);
        if (whole || sees[i / 2]) sum_[j][i] = next;
      }
    }
  }

  const AttentionArguments& args_;
  int2* seen_;  // of the thread's first row
  int count_, start_, last_key_;
  int all_first_, all_last_;  // keys that every used row of the warp sees
  uint32_t query_[Dim / 16][4];
  float score_[8][4];
  float top_[2];
  uint32_t weight_[4][4];
  float block_sum_[Dim / 8 + 1][4];  // the last: sums of weights
  float sum_[Dim / 8][4];
  Running running_[2];
};

template <int Dim>
__global__ void __launch_bounds__(GroupPlan<Dim>::kThreads, 1)
    group_tiles_kernel(const __grid_constant__ AttentionArguments args) {
  using Plan = GroupPlan<Dim>;
  extern __shared__ __align__(128) uint8_t shared[];
  const GroupRing<Dim> ring{shared};
  ring.init();
  __syncthreads();  // barriers and ones stand
  const int64_t items = args.p.num_tiles * args.head_pairs();
  if (threadIdx.x >= 128 * Plan::kGroups) {
    ptx::give_registers<Plan::kBringerRegisters>();
    if (threadIdx.x < 128 * Plan::kGroups + 32) bring_blocks<Dim>(args, items, ring);
  } else {
    ptx::take_registers<Plan::kGroupRegisters>();
    typename GroupRing<Dim>::Turn turn;
    for (ItemWalk walk; walk.item() < items; ++walk.round) {
      GroupRows<Dim> rows(args, ring, TileItem(args, walk.item()));
      rows.add_blocks(ring, turn);
      walk.forget();
      rows.store(TileItem(args, walk.item()));
    }
  }
}

template <int Dim>
void launch_group_tiles(const AttentionArguments& args, device::Stream stream) {
  using Plan = GroupPlan<Dim>;
  const cudaError_t allowed =
      cudaFuncSetAttribute(group_tiles_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kSharedBytes);
  if (allowed != cudaSuccess) throw LaunchFailure(std::string("attention, tiles: ") + cudaGetErrorString(allowed));
  int device = 0, sms = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    check_launch("attention: multiprocessors");
  }
  const auto grid = static_cast<unsigned>(std::min<int64_t>(args.p.num_tiles * args.head_pairs(), sms));
  group_tiles_kernel<Dim><<<grid, Plan::kThreads, Plan::kSharedBytes, native(stream)>>>(args);
  check_launch("attention, tiles");
}

}  // namespace quadrille::kernels::cuda
