// SPDX-License-Identifier: Apache-2.0
// Attention of tiles (prefill) for heads of up to 128 dimensions: wgmma, whose k16 step has the bits of mma.sync (and
// so of block.cuh). A CTA has 128 rows, each a token and a query head of one KV head; two warpgroups take 64 rows each,
// warps beside them bring what they read (group_room.cuh). A warpgroup has the scores of the next block in flight while
// it folds a block, and the values of a block while it weighs the next.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention/group_room.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"

namespace quadrille::kernels::cuda {

template <int Dim>
class GroupRows {
 public:
  using Room = GroupRoom<Dim>;
  using Turn = typename Room::Turn;
  using NoteTurn = typename Room::NoteTurn;

  __device__ __forceinline__ GroupRows(const AttentionArguments& args, const Room& room, const NoteTurn& note)
      : args_(args), room_(room), rows_(room.rows(note) + first_row()) {
    ptx::barrier_wait(room.noted(note), note.parity);
    const ItemNote item = *room.item(note);
    start_ = item.start;
    count_ = item.count;
    last_key_ = item.last_key;
    int first = 0, last = 0x7fffffff;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowNote row = rows_[8 * r];
      if (row.last >= 0) {
        first = max(first, row.first);
        last = min(last, row.last);
      }
      const uint8_t* q = room.query(first_row() + 8 * r);
#pragma unroll
      for (int c = 0; c < Dim / 32; ++c) {
        const int dim = 32 * c + 8 * (lane() % 4);
        uint4 piece = make_uint4(0, 0, 0, 0);
        if (row.row >= 0 && dim < args.p.pages.head_dim) piece = *reinterpret_cast<const uint4*>(q + 2 * dim);
        query_[2 * c][r] = piece.x;
        query_[2 * c][2 + r] = piece.y;
        query_[2 * c + 1][r] = piece.z;
        query_[2 * c + 1][2 + r] = piece.w;
      }
    }
    all_first_ = __reduce_max_sync(kAllLanes, first);
    all_last_ = __reduce_min_sync(kAllLanes, last);
    if (lane() == 0) ptx::barrier_arrive(room.queries_free());
#pragma unroll
    for (int j = 0; j < Dim / 8; ++j) sum_[j][0] = sum_[j][1] = sum_[j][2] = sum_[j][3] = 0.0f;
  }

  // All blocks of the item; `turn` goes on to the next item's.
  __device__ __forceinline__ void add_blocks(Turn& turn) {
    if (count_ == 0) return;
    int start = start_;
    ptx::barrier_wait(room_.full(turn), turn.parity);
    begin_scores(turn);
    ptx::wgmma_wait<0>();
    soften(start);
    powers_to_weights(score_, weight_);
    float top[2];
    Turn next = turn;
    next.advance();
    if (count_ > 1) ptx::barrier_wait(room_.full(next), next.parity);
    for (int i = 0; i + 1 < count_; ++i) {
      begin_scores(next);
      if (i > 0) fold(start - kKeyBlock, top);
      begin_values(turn);
      top[0] = top_[0];
      top[1] = top_[1];
      start += kKeyBlock;
      const Turn done = turn;
      turn = next;
      next.advance();
      const bool is_there = i + 2 >= count_ || ptx::barrier_passed(room_.full(next), next.parity);
      ptx::wgmma_wait<1>();
      soften(start);
      // Here for its branch, too: the assembler would move what stands above behind the wait for the values.
      if (!is_there) ptx::barrier_wait(room_.full(next), next.parity);
      ptx::wgmma_wait<0>();
      ptx::pin(flat(block_sum_));
      release(done);
      powers_to_weights(score_, weight_);
    }
    if (count_ > 1) fold(start - kKeyBlock, top);
    if (last_key_ < kKeyBlock - 1) clear_behind(turn);
    begin_values(turn);
    ptx::wgmma_wait<0>();
    ptx::pin(flat(block_sum_));
    release(turn);
    fold(start, top_);
    turn.advance();
  }

  __device__ __forceinline__ void store(const NoteTurn& note) const {
    const int64_t head_dim = args_.p.pages.head_dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const RowNote row = rows_[8 * r];
      if (row.row < 0) continue;
      const bool padding = row.last < 0;
      const float norm = running_[r].norm;
      uint16_t* out = args_.p.out + row.row * head_dim;
#pragma unroll
      for (int j = 0; j < Dim / 8; ++j) {
        const int dim = 8 * j + lane() % 4 * 2;
        if (dim >= head_dim) continue;
        const uint32_t pair = ptx::bf16_pair(sum_[j][2 * r] / norm, sum_[j][2 * r + 1] / norm);
        *reinterpret_cast<uint32_t*>(out + dim) = padding ? 0 : pair;
      }
    }
    __syncwarp();  // the warp has read its notes
    if (lane() == 0) ptx::barrier_arrive(room_.unnoted(note));
  }

 private:
  template <int Rows>
  __device__ __forceinline__ static float (&flat(float (&x)[Rows][4]))[Rows * 4] {
    return reinterpret_cast<float(&)[Rows * 4]>(x);
  }
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  // Of the thread's two rows in the CTA; the other is 8 behind.
  __device__ __forceinline__ static int first_row() { return static_cast<int>(threadIdx.x) / 32 * 16 + lane() / 4; }

  // score = q k of the block of `turn`, which is there, in flight.
  __device__ __forceinline__ void begin_scores(const Turn& turn) {
    const uint64_t keys = ptx::chunk_descriptor(room_.tile(turn), 16);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < Dim / 16; ++s) {
      ptx::wgmma_rows<kKeyBlock>(flat(score_), query_[s], keys + s / 2 * (4096 / 16) + s % 2 * 2, s > 0);
    }
    ptx::wgmma_commit();
  }
  // block_sum = weights * values, in flight.
  __device__ __forceinline__ void begin_values(const Turn& turn) {
    const uint64_t values = ptx::chunk_descriptor(room_.tile(turn) + Tile<Dim>::kKeyBytes, 4096);
    ptx::wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      ptx::wgmma_columns<Dim + 8>(flat(block_sum_), weight_[s], values + s * (1024 / 16), s > 0);
    }
    ptx::wgmma_commit();
  }
  __device__ __forceinline__ void clear_behind(const Turn& turn) const {
    constexpr int kThreads = 128 * Room::Plan::kGroups;
    clear_values_behind<Dim>(room_.bytes + turn.stage * Room::Plan::kStageBytes, last_key_,
                             static_cast<int>(threadIdx.x), kThreads);
    ptx::fence_shared_writes();
    ptx::named_barrier<1, kThreads>();  // clean before either warpgroup reads it
  }
  __device__ __forceinline__ void release(const Turn& turn) const {
    if (lane() == 0) ptx::barrier_arrive(room_.empty(turn));
  }

  // Scores of the block at position `start` become powers relative to top_.
  __device__ __forceinline__ void soften(int start) {
    ptx::pin(flat(score_));
    if (!all_see(start)) {
      SeenInBlock seen;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        seen.first[r] = rows_[8 * r].first - start;
        seen.last[r] = rows_[8 * r].last - start;
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
        const int first = rows_[8 * r].first;
        sees[r] = first < start + kKeyBlock && rows_[8 * r].last >= max(start, first);
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
  const Room& room_;
  const RowNote* rows_;  // the thread's first
  int start_, count_, last_key_;
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
  const GroupRoom<Dim> room(shared);
  room.init();
  __syncthreads();  // barriers and ones stand
  const auto items = static_cast<int>(args.p.num_tiles * args.head_pairs());
  if (threadIdx.x >= 128 * Plan::kGroups) {
    ptx::give_registers<Plan::kBringerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32 - 4 * Plan::kGroups;
    if (warp == 0) bring_blocks<Dim>(args, items, room);
    if (warp == 1) bring_rows<Dim>(args, items, room);
  } else {
    ptx::take_registers<Plan::kGroupRegisters>();
    typename GroupRoom<Dim>::Turn turn;
    typename GroupRoom<Dim>::NoteTurn note;
    for (ItemWalk walk; walk.item() < items; ++walk.round, note.advance()) {
      GroupRows<Dim> rows(args, room, note);
      rows.add_blocks(turn);
      rows.store(note);
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
