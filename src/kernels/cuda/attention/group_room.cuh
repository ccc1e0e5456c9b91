// SPDX-License-Identifier: Apache-2.0
// What the warpgroups of group_tiles.cuh share: the CTA's shared memory, which items it walks over, and the two warps
// that bring pages, queries and notes of the items ahead of their use.
#pragma once

#include "kernels/cuda/attention/tile_item.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/warpgroup.cuh"

namespace quadrille::kernels::cuda {

template <int Dim>
struct GroupPlan {
  static constexpr int kGroups = 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);  // the last group brings blocks and queries
  static constexpr int kGroupRegisters = 232;
  static constexpr int kBringerRegisters = 40;
  // Behind the values of a stage: a chunk of ones, whose columns make the sums of weights beside the sums of values.
  static constexpr int kChunkBytes = 4096;
  static constexpr int kStageBytes = Tile<Dim>::kBytes + kChunkBytes;
  static constexpr int kStages = 5;
  static constexpr int kQueryPitch = 2 * Dim + 16;  // bytes between rows: eight rows meet every bank
  static constexpr int kQueriesAt = kStages * kStageBytes;
  static constexpr int kNotesAt = kQueriesAt + kRows * kQueryPitch;
  static constexpr int kNoteBytes = kRows * 16 + 16;  // a RowNote a row, an ItemNote
  static constexpr int kBarriersAt = kNotesAt + 2 * kNoteBytes;
  static constexpr int kSharedBytes = kBarriersAt + 128;
  static_assert(kSharedBytes <= 227 * 1024);
};

// What the consumers know of an item and of its rows.
struct ItemNote {
  int start;     // position of the first block
  int count;     // blocks
  int last_key;  // of the last block that some row sees: 63 where it is full
  int unused;
};
struct RowNote {
  int row;          // of q and out; -1: not used
  int first, last;  // keys that it sees; last below first: none
  int unused;
};

// Where a walk through `Stages` buffers stands.
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

// The CTA's shared memory: stages of blocks, queries of one item, notes of two; a barrier each for full and for empty.
template <int Dim>
struct GroupRoom {
  using Plan = GroupPlan<Dim>;
  using Turn = RingTurn<Plan::kStages>;
  using NoteTurn = RingTurn<2>;
  uint8_t* bytes;
  uint32_t address;

  __device__ __forceinline__ explicit GroupRoom(uint8_t* shared) : bytes(shared) {
    address = ptx::shared_address(shared);
    asm volatile("" : "+r"(address));  // not found anew for every block
  }
  __device__ __forceinline__ uint32_t barrier(int number) const {
    return address + Plan::kBarriersAt + static_cast<uint32_t>(number) * 8;
  }
  __device__ __forceinline__ uint32_t full(const Turn& turn) const { return barrier(turn.stage); }
  __device__ __forceinline__ uint32_t empty(const Turn& turn) const { return barrier(Plan::kStages + turn.stage); }
  // Notes and queries of an item come together; the queries are free again before the notes.
  __device__ __forceinline__ uint32_t noted(const NoteTurn& turn) const {
    return barrier(2 * Plan::kStages + turn.stage);
  }
  __device__ __forceinline__ uint32_t unnoted(const NoteTurn& turn) const {
    return barrier(2 * Plan::kStages + 2 + turn.stage);
  }
  __device__ __forceinline__ uint32_t queries_free() const { return barrier(2 * Plan::kStages + 4); }

  __device__ __forceinline__ uint32_t tile(const Turn& turn) const {
    return address + static_cast<uint32_t>(turn.stage) * Plan::kStageBytes;
  }
  __device__ __forceinline__ uint8_t* query(int row) const {
    return bytes + Plan::kQueriesAt + row * Plan::kQueryPitch;
  }
  __device__ __forceinline__ RowNote* rows(const NoteTurn& turn) const {
    return reinterpret_cast<RowNote*>(bytes + Plan::kNotesAt + turn.stage * Plan::kNoteBytes);
  }
  __device__ __forceinline__ ItemNote* item(const NoteTurn& turn) const {
    return reinterpret_cast<ItemNote*>(rows(turn) + Plan::kRows);
  }

  // All threads; the caller synchronises.
  __device__ void init() const {
    for (int s = 0; s < Plan::kStages; ++s) {
      uint4* ones = reinterpret_cast<uint4*>(bytes + s * Plan::kStageBytes + Tile<Dim>::kBytes);
      constexpr uint32_t kOnes = 0x3f803f80u;
      for (int i = static_cast<int>(threadIdx.x); i < Plan::kChunkBytes / 16; i += Plan::kThreads) {
        ones[i] = make_uint4(kOnes, kOnes, kOnes, kOnes);
      }
    }
    ptx::fence_shared_writes();
    if (threadIdx.x != 0) return;
    constexpr int kWarps = 4 * Plan::kGroups;
    for (int s = 0; s < Plan::kStages; ++s) {
      ptx::barrier_init(barrier(s), 1);
      ptx::barrier_init(barrier(Plan::kStages + s), kWarps);
    }
    for (int s = 0; s < 2; ++s) {
      ptx::barrier_init(barrier(2 * Plan::kStages + s), 32);
      ptx::barrier_init(barrier(2 * Plan::kStages + 2 + s), kWarps);
    }
    ptx::barrier_init(queries_free(), kWarps);
    ptx::fence_barrier_init();
  }
};

// Items of a CTA, one a round of the grid. Every other round goes the other way: the CTA with the longest item of a
// round has the shortest of the next.
struct ItemWalk {
  int round = 0;
  __device__ __forceinline__ int item() const {
    const unsigned own = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return static_cast<int>(round * gridDim.x + own);
  }
};

// One warp: the blocks of all items, in the order in which they are read.
template <int Dim>
__device__ __forceinline__ void bring_blocks(const AttentionArguments& args, int items, const GroupRoom<Dim>& room) {
  const layout::KvTile map{args.p.pages.num_kv_heads, args.p.pages.head_dim};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  typename GroupRoom<Dim>::Turn turn;
  for (ItemWalk walk; walk.item() < items; ++walk.round) {
    const TileItem item(args, walk.item());
    const uint16_t* pool = args.p.pages.data + item.kv * map.tile_size();
    const int count = static_cast<int>(item.blocks.count);
    for (int base = 0; base < count; base += 32) {
      const int32_t own_page = base + lane < count ? item.pages[base + lane] : 0;
      for (int i = 0; i < 32 && base + i < count; ++i, turn.advance()) {
        const int32_t page = __shfl_sync(kAllLanes, own_page, i);
        if (lane != 0) continue;
        ptx::barrier_wait(room.empty(turn), turn.parity ^ 1);  // pairs with GroupRows::release
        ptx::barrier_expect(room.full(turn), Tile<Dim>::kBytes);
        ptx::bulk_copy(room.tile(turn), pool + page * map.page_size(), Tile<Dim>::kBytes, room.full(turn));
      }
      __syncwarp();
    }
  }
}

// Another warp: notes and queries of the items, an item ahead.
template <int Dim>
__device__ __forceinline__ void bring_rows(const AttentionArguments& args, int items, const GroupRoom<Dim>& room) {
  using Plan = GroupPlan<Dim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto row_bytes = static_cast<uint32_t>(2 * args.p.pages.head_dim);
  typename GroupRoom<Dim>::NoteTurn turn;
  for (ItemWalk walk; walk.item() < items; ++walk.round, turn.advance()) {
    const TileItem item(args, walk.item());
    ptx::barrier_wait(room.unnoted(turn), turn.parity ^ 1);  // pairs with GroupRows::store
    if (lane == 0) {
      *room.item(turn) = {static_cast<int>(item.blocks.first) * kKeyBlock, static_cast<int>(item.blocks.count),
                          item.last_key(), 0};
    }
    ptx::barrier_wait(room.queries_free(), walk.round % 2 ^ 1);  // pairs with the constructor of GroupRows
    uint32_t bytes = 0;
#pragma unroll 1
    for (int i = lane; i < Plan::kRows; i += 32) {
      const TileRow row = tile_row(args, item.tile, item.kv, item.head_tile, i);
      const int at = row.token < 0 ? -1 : static_cast<int>(row.token * args.p.num_heads + row.head);
      room.rows(turn)[i] = {at, static_cast<int>(row.seen.first), static_cast<int>(row.seen.last), 0};
      if (at >= 0) bytes += row_bytes;
    }
    ptx::barrier_expect(room.noted(turn), bytes);  // of this lane, like its copies
#pragma unroll 1
    for (int i = lane; i < Plan::kRows; i += 32) {
      const int at = room.rows(turn)[i].row;
      if (at < 0) continue;
      ptx::bulk_copy(ptx::shared_address(room.query(i)), args.p.q + at * args.p.pages.head_dim, row_bytes,
                     room.noted(turn));
    }
  }
}

}  // namespace quadrille::kernels::cuda
