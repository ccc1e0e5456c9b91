// SPDX-License-Identifier: Apache-2.0
// Attention of single tokens (decode): a CTA has the query heads of one KV head as rows; each warp takes a block of
// keys and values at a time through its own buffer, and the CTA folds the warps' results in ascending order. Where the
// blocks of a token are spread over CTAs, results go to memory, and the last cluster of CTAs makes the same folds
// (spread_fold.cuh). Where codes are asked for, the last CTA of a token makes them of its row (row_codes.cuh). Where
// the problem has a projection, every CTA makes its heads of it (fresh_heads.cuh).
#pragma once

#include "core/check.h"
#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/attention/block.cuh"
#include "kernels/cuda/attention/block_buffer.cuh"
#include "kernels/cuda/attention/row_codes.cuh"
#include "kernels/cuda/attention/single_work.cuh"
#include "kernels/cuda/attention/spread_fold.cuh"
#include "kernels/cuda/launch_clusters.h"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/remote_store.cuh"

namespace quadrille::kernels::cuda {

inline constexpr int kMostSingleWarps = 4;

// One block: its results (sums, maximum, norm) of rows g and g + 8 go to `partial` (null: nobody wants them).
// next_page: of the block that the warp takes next, and how many of its positions are seen; -1: none.
template <int Dim>
__device__ __forceinline__ void single_block(const BlockBuffer<Dim>& buffer, const Queries<Dim>& queries, float scale2,
                                             const SeenInBlock& seen, uint32_t parity, int32_t next_page, int next_rows,
                                             float* const (&partial)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int t = lane % 4;
  ptx::barrier_wait(buffer.key_barrier, parity);
  float score[8][4];
  block_scores<Dim>(queries, buffer.tile, lane, score);
  __syncwarp();
  if (lane == 0 && next_page >= 0) buffer.fetch_keys(next_page, next_rows);
  if (seen.first[0] > 0 || seen.last[0] < kKeyBlock - 1) hide_unseen(seen, t, score);
  Weights weights;
  block_weights(score, scale2, weights);
  ptx::barrier_wait(buffer.value_barrier, parity);
  if (seen.last[0] < kKeyBlock - 1) {
    clear_values_behind<Dim>(buffer.tile, seen.last[0], lane, 32);
    __syncwarp();  // the token's last block: nothing is fetched into it any more
  }
#pragma unroll 1
  for (int c = 0; c < Tile<Dim>::kChunks; ++c) {
    float sum[4][4];
    block_values<Dim>(weights, buffer.tile, c, lane, sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (partial[r] == nullptr) continue;
      float2* to = reinterpret_cast<float2*>(partial[r] + 32 * c + 2 * t);
#pragma unroll
      for (int j = 0; j < 4; ++j) to[4 * j] = make_float2(sum[j][2 * r], sum[j][2 * r + 1]);
    }
  }
  __syncwarp();
  if (lane == 0 && next_page >= 0) buffer.fetch_values(next_page, next_rows);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (partial[r] != nullptr && t == 0) {
      *reinterpret_cast<float2*>(partial[r] + Dim) = make_float2(weights.top[r], weights.norm[r]);
    }
  }
}

// The sums of a CTA's rows: a thread has one row and every `step`-th four dimensions of it.
template <int Dim>
struct FoldedRow {
  static constexpr int kMost = 16 * Dim / 4 / 64;  // pieces of four: 16 rows, 64 threads
  int row, first, step;
  Running running;
  float4 sum[kMost];

  __device__ __forceinline__ explicit FoldedRow(int rows)
      : row(static_cast<int>(threadIdx.x) % rows),
        first(static_cast<int>(threadIdx.x) / rows),
        step(static_cast<int>(blockDim.x) / rows) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) sum[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  // partial: the row's result of the next block.
  __device__ __forceinline__ void add(const float* partial) {
    const Fold fold = fold_block(running, partial[Dim], partial[Dim + 1]);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int piece = first + i * step;
      if (piece >= Dim / 4) continue;
      const float4 block = *reinterpret_cast<const float4*>(partial + 4 * piece);
      sum[i] = make_float4(folded(sum[i].x, fold, block.x), folded(sum[i].y, fold, block.y),
                           folded(sum[i].z, fold, block.z), folded(sum[i].w, fold, block.w));
    }
  }
  __device__ __forceinline__ void store(uint16_t* out, int64_t head_dim) const {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int piece = first + i * step;
      if (piece * 4 >= head_dim) continue;
      const float n = running.norm;
      *reinterpret_cast<uint2*>(out + 4 * piece) =
          make_uint2(ptx::bf16_pair(sum[i].x / n, sum[i].y / n), ptx::bf16_pair(sum[i].z / n, sum[i].w / n));
    }
  }
};

// Positions [from, last] of a block that was fetched while the predecessor still wrote them, again: their rows of every
// chunk of keys and of values, as they lie in the page (layout/kv_tile.h). `tile`: of the KV head in the page. All
// lanes of a warp, behind the wait for the predecessor and for both halves of the block.
template <int Dim>
__device__ __forceinline__ void fetch_fresh(uint8_t* block, const uint16_t* tile, int from, int last) {
  constexpr unsigned kRow = layout::KvTile::kChunkDims / 8, kChunk = layout::KvTile::kChunkSize / 8;  // vectors
  const unsigned rows = static_cast<unsigned>(last - from + 1) * kRow;
  const uint4* source = reinterpret_cast<const uint4*>(tile);
  for (unsigned i = threadIdx.x % 32; i < 2 * Tile<Dim>::kChunks * rows; i += 32) {
    const unsigned at = i / rows * kChunk + static_cast<unsigned>(from) * kRow + i % rows;
    reinterpret_cast<uint4*>(block)[at] = __ldcg(source + at);
  }
  __syncwarp();  // they stand for the whole warp
}

// The warp's first block, `first` of `page`, behind the wait.
template <int Dim>
__device__ __forceinline__ void read_again(const SingleWork& work, const BlockBuffer<Dim>& buffer, int64_t first,
                                           int32_t page) {
  ptx::barrier_wait(buffer.key_barrier, 0);
  ptx::barrier_wait(buffer.value_barrier, 0);
  const int64_t newest = work.position - (work.blocks.first + first) * kKeyBlock;
  fetch_fresh<Dim>(buffer.tile, buffer.pool + page * buffer.page_size, work.fresh_from(first),
                   newest < kKeyBlock ? static_cast<int>(newest) : kKeyBlock - 1);
}

template <int Dim>
__device__ __forceinline__ void clear_padding(const AttentionArguments& args, const SingleWork& work) {
  const int64_t head_dim = args.p.pages.head_dim;
  for (int64_t i = threadIdx.x; i < kPackedHeads * head_dim; i += blockDim.x) {
    const int64_t head = work.head_at(args, i / head_dim);
    if (head >= 0) args.p.out[(work.token * args.p.num_heads + head) * head_dim + i % head_dim] = 0;
  }
}

// Where the results of block i go, row g and row g + 8: this warp's rows in shared memory, or the workspace.
template <int Dim>
__device__ __forceinline__ void partial_rows(const AttentionArguments& args, const SingleWork& work, int64_t i,
                                             float* own_rows, float* (&partial)[2]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int place = g + 8 * r;
    partial[r] = place < args.rows ? own_rows + place * partial_pitch(Dim) : nullptr;
    if (!work.is_spread) continue;
    const int64_t head = work.head_at(args, place);
    const int64_t row = (work.single * args.p.num_heads + head) * args.most_blocks + i;
    partial[r] = head >= 0 ? args.p.workspace + row * partial_pitch(Dim) : nullptr;
  }
}

// A CTA's shared memory: barriers of the warps, words, then their buffers and results.
struct SinglesRoom {
  static constexpr int kFlagAt = 64;
  static constexpr int kMaximaAt = 80;  // a word a warp
  static constexpr int kTilesAt = 128;
  static_assert(kMostSingleWarps * 16 <= kFlagAt && kMaximaAt + kMostSingleWarps * 4 <= kTilesAt);
};

// Whether this cluster of the (single, KV head, head tile) came last: all results stand then. Every thread of it.
__device__ __forceinline__ bool is_last_cluster(const AttentionArguments& args, const SingleWork& work,
                                                uint8_t* shared) {
  ptx::cluster_sync();  // the results of the cluster stand
  const int64_t clusters = work.clusters(args);
  if (clusters == 1) return true;
  uint32_t* flag = reinterpret_cast<uint32_t*>(shared + SinglesRoom::kFlagAt);
  if (work.rank(args) == 0 && threadIdx.x == 0) {
    int32_t* counter = args.counters_of(work.single) + work.kv * args.heads.tiles() + work.head_tile;
    __threadfence();
    const bool is_last = atomicAdd(counter, 1) == static_cast<int32_t>(clusters) - 1;
    if (is_last) *counter = 0;
    __threadfence();
    for (int r = 0; r < args.cluster; ++r) ptx::store_in(ptx::shared_address(flag), r, is_last ? 1u : 0u);
  }
  ptx::cluster_sync();  // every CTA has its flag
  return *static_cast<volatile uint32_t*>(flag) != 0;
}

// The row's share of this CTA stands; with the last one it becomes codes.
__device__ __forceinline__ void finish_row(const AttentionArguments& args, const SingleWork& work, uint8_t* shared) {
  if (args.p.act == nullptr) return;
  const int64_t arrivals = args.head_pairs() * (work.is_spread ? args.cluster : 1);
  int32_t* counter = args.counters_of(work.single) + args.head_pairs();
  auto* flag = reinterpret_cast<volatile uint32_t*>(shared + SinglesRoom::kFlagAt);
  if (!is_last_arrival(counter, arrivals, flag)) return;
  quantise_row(args, work.token, reinterpret_cast<uint32_t*>(shared + SinglesRoom::kMaximaAt));
}

template <int Dim>
__device__ __forceinline__ void fold_single(const AttentionArguments& args, const SingleWork& work, uint8_t* tiles,
                                            float* own_rows) {
  const int64_t head_dim = args.p.pages.head_dim;
  const int64_t head_floats = args.most_blocks * partial_pitch(Dim);
  const auto chunks = static_cast<int>((work.blocks.count + kFoldBlocks - 1) / kFoldBlocks);
  const float* const partials = args.p.workspace + work.single * args.p.num_heads * head_floats;
  const FoldPieces<Dim> pieces{partials, head_floats, work.blocks.count, chunks};
  const FoldRows rows{static_cast<int>(work.rank(args)), static_cast<int>(args.cluster),
                      static_cast<int>(args.heads.packed())};
  const FoldRoom<Dim> room{reinterpret_cast<float*>(tiles), reinterpret_cast<float4*>(own_rows)};
  fold_spread<Dim>(
      pieces, rows, [&](int row) { return work.head_at(args, row); }, room,
      args.p.out + work.token * args.p.num_heads * head_dim, head_dim);
}

// The queries of the fragment's rows g and g + 8: from memory, or the rows that this CTA has made.
template <int Dim, bool Fresh>
__device__ __forceinline__ void load_queries(const AttentionArguments& args, const SingleWork& work,
                                             const FreshPlaces& places, Queries<Dim>& queries) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int place = lane / 4 + 8 * r;
    const int64_t head = work.head_at(args, place);
    if constexpr (Fresh) {
#pragma unroll
      for (int c = 0; c < Dim / 32; ++c) {
        const auto* row = reinterpret_cast<const uint4*>(places.query + place * places.query_pitch + 32 * c);
        queries.row[r][c] = head < 0 ? make_uint4(0, 0, 0, 0) : row[lane % 4];
      }
    } else {
      const int64_t head_dim = args.p.pages.head_dim;
      queries.load(r, head < 0 ? nullptr : args.p.q + (work.token * args.p.num_heads + head) * head_dim, head_dim,
                   lane % 4);
    }
  }
  if constexpr (Fresh) __syncthreads();  // they have been read, results take their place
}

// The CTA's blocks, one a warp at a time; `folded_row` takes them where the CTA has all of the single's.
template <int Dim, bool Fresh>
__device__ __forceinline__ void take_blocks(const AttentionArguments& args, const SingleWork& work,
                                            const BlockBuffer<Dim>& buffer, const int32_t* pages,
                                            const FreshPlaces& places, float* partials, FoldedRow<Dim>& folded_row) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int rows_size = args.rows * static_cast<int>(partial_pitch(Dim));
  Queries<Dim> queries;
  load_queries<Dim, Fresh>(args, work, places, queries);
  int64_t mine = work.begin + warp;
  uint32_t parity = 0;
  for (int64_t base = work.begin; base < work.end; base += warps) {
    if (mine < work.end) {
      const int32_t next_page = mine + warps < work.end ? pages[mine + warps] : -1;
      if (Fresh && work.fresh_from(mine) < kKeyBlock) {
        ptx::barrier_wait(buffer.key_barrier, parity);
        ptx::barrier_wait(buffer.value_barrier, parity);
        place_newest<Dim>(places, (work.blocks.first + mine) * kKeyBlock, buffer.tile,
                          static_cast<int>(threadIdx.x) % 32, 32);
        ptx::fence_async_shared();  // before the warp's next block
        __syncwarp();               // the block is as the token sees it
      }
      float* partial[2];
      partial_rows<Dim>(args, work, mine, partials + warp * rows_size, partial);
      single_block<Dim>(buffer, queries, args.scale2, work.in_block(mine), parity, next_page,
                        Fresh ? work.rows_of(mine + warps) : kKeyBlock, partial);
      parity ^= 1;
      mine += warps;
    }
    if (work.is_spread) continue;
    __syncthreads();  // the results of all warps stand
    const int count = static_cast<int>(min(static_cast<int64_t>(warps), work.end - base));
    for (int w = 0; w < count; ++w) {
      folded_row.add(partials + w * rows_size + folded_row.row * partial_pitch(Dim));
    }
    __syncthreads();  // they have been read
  }
}

// Behind its blocks: the single's row, by whoever is last.
template <int Dim>
__device__ __forceinline__ void fold_results(const AttentionArguments& args, const SingleWork& work, uint8_t* shared,
                                             float* partials, const FoldedRow<Dim>& folded_row) {
  const int64_t head_dim = args.p.pages.head_dim;
  if (work.is_spread) {
    if (!is_last_cluster(args, work, shared)) return;
    fold_single<Dim>(args, work, shared + SinglesRoom::kTilesAt,
                     partials + static_cast<int>(threadIdx.x) / 32 * args.rows * partial_pitch(Dim));
  } else {
    const int64_t head = work.head_at(args, folded_row.row);
    if (head >= 0) folded_row.store(args.p.out + (work.token * args.p.num_heads + head) * head_dim, head_dim);
  }
  finish_row(args, work, shared);
}

// Fresh: the problem's projection becomes the heads.
template <int Dim, bool Fresh>
__global__ void __launch_bounds__(kMostSingleWarps * 32)
    singles_kernel(const __grid_constant__ AttentionArguments args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const uint32_t barriers = ptx::shared_address(shared) + warp * 16;
  uint8_t* tiles = shared + SinglesRoom::kTilesAt;
  float* partials = reinterpret_cast<float*>(tiles + warps * Tile<Dim>::kBytes);
  if (lane == 0) {
    ptx::barrier_init(barriers, 1);
    ptx::barrier_init(barriers + 8, 1);
    ptx::fence_barrier_init();
  }
  // The step's lists are older than the predecessor, and so are the blocks but for the step's own positions.
  const SingleWork work(args);
  const int64_t head_dim = args.p.pages.head_dim;
  const layout::KvTile map{args.p.pages.num_kv_heads, head_dim};
  const BlockBuffer<Dim> buffer{tiles + warp * Tile<Dim>::kBytes, barriers, barriers + 8,
                                args.p.pages.data + work.kv * map.tile_size(), map.page_size()};
  const int64_t first = work.begin + warp;
  const int32_t* pages = nullptr;
  int32_t page = -1;
  if (first < work.end) {
    pages = args.p.pages.table + args.p.sequence[work.token] * args.p.pages.table_stride + work.blocks.first;
    page = pages[first];
  }
  // Reading the fresh rows again takes registers, which wider heads do not have.
  constexpr bool kFetchesEarly = Dim <= 128, kReadsFresh = kFetchesEarly && !Fresh;
  const int rows = Fresh ? work.rows_of(first) : kKeyBlock;
  if (kFetchesEarly && lane == 0 && page >= 0) buffer.fetch_block(page, rows);
  FreshPlaces places;
  HeadTasks<Fresh ? Dim : 32> tasks;
  if constexpr (Fresh) {
    places = fresh_places<Dim>(args, work, reinterpret_cast<uint16_t*>(partials), warps);
    tasks.prepare(args, places, warp);
  }
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  if constexpr (Fresh) {
    tasks.run(args, places);
    __syncthreads();  // the heads stand
  }
  if (!kFetchesEarly && lane == 0 && page >= 0) buffer.fetch_block(page, rows);
  __syncwarp();  // the warp's own barriers stand
  if (kReadsFresh && page >= 0 && work.fresh_from(first) < kKeyBlock) read_again<Dim>(work, buffer, first, page);
  if (work.position < 0) {
    if (work.part != 0) return;
    clear_padding<Dim>(args, work);
    finish_row(args, work, shared);
    return;
  }
  if (work.is_spread ? !work.cluster_works(args) : work.begin >= work.end) return;
  FoldedRow<Dim> folded_row(args.rows);
  take_blocks<Dim, Fresh>(args, work, buffer, pages, places, partials, folded_row);
  if constexpr (Dim <= 128) {
    fold_results<Dim>(args, work, shared, partials, folded_row);
  } else {
    // Found anew: what stays in registers over the blocks spills with heads this wide.
    fold_results<Dim>(args, SingleWork(args), shared, partials, folded_row);
  }
}

template <int Dim>
void launch_singles(const AttentionArguments& args, int64_t warps, device::Stream stream) {
  constexpr bool kTakesFresh = Dim == 32 || Dim == 64 || Dim == 128;  // makes_fresh_heads()
  const bool is_fresh = args.p.projection.qkv != nullptr;
  QD_CHECK(!is_fresh || kTakesFresh, "heads that a CTA can make");
  const auto bytes = static_cast<int>(singles_shared_bytes(Dim, warps, args.rows) + (is_fresh ? 8 * Dim : 0));
  void (*const kernel)(AttentionArguments) = is_fresh ? singles_kernel<Dim, kTakesFresh> : singles_kernel<Dim, false>;
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (allowed != cudaSuccess) throw LaunchFailure(std::string("attention, singles: ") + cudaGetErrorString(allowed));
  const auto grid = static_cast<unsigned>(args.p.num_singles * args.head_pairs() * args.parts);
  launch_chained_clusters(kernel, dim3(grid), dim3(static_cast<unsigned>(warps * 32)),
                          static_cast<unsigned>(args.cluster), static_cast<size_t>(bytes), native(stream), args);
  check_launch("attention, singles");
}

}  // namespace quadrille::kernels::cuda
