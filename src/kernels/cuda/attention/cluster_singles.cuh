// SPDX-License-Identifier: Apache-2.0
// Attention of few single tokens (decode) with least latency: a cluster has the query heads of one KV head. Its CTAs
// make norm, rotary embedding and the token's own keys and values themselves; four warps share a block of keys, 16 keys
// and then 32 dimensions each; a block's results go straight into the shared memory of the CTA that folds the head.
// The bits of singles.cuh behind split_heads. Called by attention.cpp.
#pragma once

#include "kernels/cuda/attention/block_buffer.cuh"
#include "kernels/cuda/attention/cluster_room.cuh"
#include "kernels/cuda/attention/fresh_heads.cuh"
#include "kernels/cuda/attention/row_codes.cuh"
#include "kernels/cuda/attention/spread_fold.cuh"
#include "kernels/cuda/launch_clusters.h"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/remote_store.cuh"

namespace quadrille::kernels::cuda {

// --- Blocks: a group of four warps each ---

// Of the threads of a group, by a number that the compiler knows.
__device__ __forceinline__ void group_barrier(int group) {
  constexpr int kThreads = kGroupWarps * 32;
  static_assert(kGroups == 3);
  if (group == 0) {
    ptx::named_barrier<1, kThreads>();
  } else if (group == 1) {
    ptx::named_barrier<2, kThreads>();
  } else {
    ptx::named_barrier<3, kThreads>();
  }
}

// The step's own positions, and zeros for values behind the token's. All threads of the group, behind both halves.
template <int Dim>
__device__ __forceinline__ void refresh_block(const ClusterWork& work, const FreshPlaces& places, int i, uint8_t* tile,
                                              int thread) {
  constexpr int kThreads = kGroupWarps * 32;
  place_newest<Dim>(places, static_cast<int64_t>(work.first_block + i) * kKeyBlock, tile, thread, kThreads);
  const int last = work.in_block(i).last;
  if (last < kKeyBlock - 1) clear_values_behind<Dim>(tile, last, thread, kThreads);
  ptx::fence_async_shared();  // before the group's next block, which may come into the same place
}

// Keys and values are the rows of the products (A) and the heads their columns, so no row of a fragment is idle. The
// bits are those of block.cuh: a step's products and their order within it are the same.

// Scores of the warp's 16 keys: [r][e] key g + 8 r, head 2 t + e.
template <int Dim>
__device__ __forceinline__ void share_of_scores(const ClusterRoom<Dim>& room, const uint8_t* tile, int warp,
                                                int first_seen, int last_seen, float (&score)[2][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t keys = ptx::shared_address(tile);
  const uint16_t* row = room.query(lane / 4) + 8 * (lane % 4);
  float sum[4] = {};
#pragma unroll
  for (int c = 0; c < Dim / 32; ++c) {
    const uint4 query = *reinterpret_cast<const uint4*>(row + 32 * c);
    uint32_t low[4], high[4];
    ptx::load_matrices(keys + key_piece_at(2 * warp, c, lane), low);
    ptx::load_matrices(keys + key_piece_at(2 * warp + 1, c, lane), high);
    ptx::mma_bf16(sum, low[0], high[0], low[1], high[1], query.x, query.y);
    ptx::mma_bf16(sum, low[2], high[2], low[3], high[3], query.z, query.w);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int key = 16 * warp + lane / 4 + 8 * r;
    const bool visible = key >= first_seen && key <= last_seen;
#pragma unroll
    for (int e = 0; e < 2; ++e) score[r][e] = visible ? sum[2 * r + e] : -__builtin_inff();
  }
}

// The largest score of each head among the warp's keys, for the group.
template <int Dim>
__device__ __forceinline__ void note_largest(const ClusterRoom<Dim>& room, int group, int warp,
                                             const float (&score)[2][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    largest[e] = fmaxf(score[0][e], score[1][e]);
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) {
      largest[e] = fmaxf(largest[e], __shfl_xor_sync(kAllLanes, largest[e], distance));
    }
  }
  if (lane < 4) {
    *reinterpret_cast<float2*>(room.maxima(group) + warp * kClusterRows + 2 * lane) =
        make_float2(largest[0], largest[1]);
  }
}
// Behind the group's barrier: the weights of the warp's keys, for the group. Returns the largest score of heads 2 t and
// 2 t + 1 times scale2.
template <int Dim>
__device__ __forceinline__ float2 note_weights(const ClusterRoom<Dim>& room, int group, int warp, float scale2,
                                               const float (&score)[2][2]) {
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  const float* maxima = room.maxima(group) + 2 * t;
  float2 top = *reinterpret_cast<const float2*>(maxima);
#pragma unroll
  for (int w = 1; w < kGroupWarps; ++w) {
    const float2 other = *reinterpret_cast<const float2*>(maxima + w * kClusterRows);
    top = make_float2(fmaxf(top.x, other.x), fmaxf(top.y, other.y));
  }
  top = make_float2(top.x * scale2, top.y * scale2);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const uint32_t pair = ptx::bf16_pair(ptx::exp2_fast(__builtin_fmaf(score[r][0], scale2, -top.x)),
                                         ptx::exp2_fast(__builtin_fmaf(score[r][1], scale2, -top.y)));
    const int key = 16 * warp + g + 8 * r;
    room.weights(group, 2 * t)[key] = static_cast<uint16_t>(pair);
    room.weights(group, 2 * t + 1)[key] = static_cast<uint16_t>(pair >> 16);
  }
  return top;
}

// Where the results of a row of heads go: kPitch floats a block, in the CTA that folds the row.
template <int Dim>
struct ResultRow {
  uint32_t address, barrier;  // address 0: nobody wants it

  __device__ __forceinline__ ResultRow(const AttentionArguments& args, const ClusterWork& work,
                                       const ClusterRoom<Dim>& room, int row) {
    const int owner = work.owner_of(row);
    const float* to = room.results() + (row >> work.shift) * work.count * ClusterRoom<Dim>::kPitch;
    address = work.head_at(args, row) < 0 ? 0 : ptx::address_in(ptx::shared_address(to), owner);
    barrier = ptx::address_in(room.results_barrier(), owner);
  }
  __device__ __forceinline__ void store(int i, int at, float a, float b, float c, float d) const {
    if (address != 0) ptx::store_remote(address + 4 * (i * ClusterRoom<Dim>::kPitch + at), a, b, c, d, barrier);
  }
};

// Sums of the values: a warp has 32 dimensions; warp 0 has the sum of the weights as well. In the results dimension
// 32 c + 8 i + g lies at 32 c + 4 g + i. rows: heads 2 t and 2 t + 1.
template <int Dim>
__device__ __forceinline__ void share_of_values(const ClusterRoom<Dim>& room, int group, int warp, const uint8_t* tile,
                                                const float2& top, int i, const ResultRow<Dim> (&rows)[2]) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= Dim / 32) return;
  const uint32_t values = ptx::shared_address(tile) + Tile<Dim>::kKeyBytes;
  const auto* own = reinterpret_cast<const uint32_t*>(room.weights(group, lane / 4)) + lane % 4;
  uint32_t weight[4][2];
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    weight[s][0] = own[8 * s];
    weight[s][1] = own[8 * s + 4];
  }
  float sum[2][4] = {}, norm[4] = {};
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t v[4];
      ptx::load_matrices_transposed(values + value_piece_at(s, warp, 2 * h, lane), v);
      ptx::mma_bf16(sum[h], v[0], v[2], v[1], v[3], weight[s][0], weight[s][1]);
    }
    ptx::mma_bf16(norm, kOnes, kOnes, kOnes, kOnes, weight[s][0], weight[s][1]);
  }
  const int at = 32 * warp + lane / 4 * 4;
  rows[0].store(i, at, sum[0][0], sum[0][2], sum[1][0], sum[1][2]);
  rows[1].store(i, at, sum[0][1], sum[0][3], sum[1][1], sum[1][3]);
  if (warp != 0 || lane >= 4) return;
  rows[0].store(i, Dim, top.x, norm[0], 0.0f, 0.0f);
  rows[1].store(i, Dim, top.y, norm[1], 0.0f, 0.0f);
}

// The blocks of one group of warps. The newest positions stand in the first one already.
template <int Dim>
__device__ __forceinline__ void take_group_blocks(const AttentionArguments& args, const ClusterWork& work,
                                                  const ClusterRoom<Dim>& room, const FreshPlaces& places,
                                                  const BlockBuffer<Dim>& buffer, const ResultRow<Dim> (&rows)[2],
                                                  int group, int first) {
  const int thread = static_cast<int>(threadIdx.x) % (kGroupWarps * 32);
  const int warp = thread / 32, stride = work.cluster * kGroups;
  uint32_t parity = 0;
  for (int i = first; i < work.count; i += stride) {
    const int32_t next_page = i + stride < work.count ? work.pages[i + stride] : -1;
    ptx::barrier_wait(buffer.key_barrier, parity);
    if (i > first && i >= work.block_of(work.fresh - 1)) {
      ptx::barrier_wait(buffer.value_barrier, parity);
      refresh_block<Dim>(work, places, i, buffer.tile, thread);
      group_barrier(group);  // the block is as the token sees it
    }
    float score[2][2];
    const int begin = (work.first_block + i) * kKeyBlock;
    share_of_scores<Dim>(room, buffer.tile, warp, work.first_key - begin, work.position - begin, score);
    note_largest<Dim>(room, group, warp, score);
    group_barrier(group);  // the maxima stand, the keys have been read
    if (thread == 0 && next_page >= 0) buffer.fetch_keys(next_page);
    const float2 top = note_weights<Dim>(room, group, warp, args.scale2, score);
    ptx::barrier_wait(buffer.value_barrier, parity);
    group_barrier(group);  // the weights stand
    share_of_values<Dim>(room, group, warp, buffer.tile, top, i, rows);
    parity ^= 1;
    if (next_page < 0) return;
    group_barrier(group);  // the values have been read
    if (thread == 0) buffer.fetch_values(next_page);
  }
}

// --- Folds ---

// Bytes of results that this CTA receives.
template <int Dim>
__device__ __forceinline__ uint32_t result_bytes(const AttentionArguments& args, const ClusterWork& work) {
  uint32_t rows = 0;
  for (int row = work.rank; row < kClusterRows; row += work.cluster) rows += work.head_at(args, row) >= 0 ? 1 : 0;
  return rows * static_cast<uint32_t>(work.count) * ClusterRoom<Dim>::kPitch * 4;
}

// 32 dimensions of a head, by one warp: a lane has place 32 part + lane of the results. factors: [32] of the warp.
template <int Dim>
__device__ __forceinline__ void fold_row(const AttentionArguments& args, const ClusterWork& work, const float* results,
                                         float4* factors, int64_t head, int part) {
  constexpr int kPitch = ClusterRoom<Dim>::kPitch, kAtOnce = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Running running;
  float sum = 0.0f;
  for (int base = 0; base < work.count; base += kFoldBlocks) {
    const float* from = results + base * kPitch;
    const int count = min(kFoldBlocks, work.count - base);
    const float2 own = lane < count ? *reinterpret_cast<const float2*>(from + lane * kPitch + Dim)
                                    : make_float2(-__builtin_inff(), 0.0f);
    const BlockFactors found = block_factors(own.x, running.top);
    running.top = found.top;
    factors[lane] = make_float4(found.fold.keep, found.fold.take, own.y, 0.0f);
    __syncwarp();  // the factors stand
    from += 32 * part + lane;
#pragma unroll kAtOnce
    for (int j = 0; j < count; ++j) {
      const float4 f = factors[j];
      running.norm = folded(running.norm, {f.x, f.y}, f.z);
      sum = folded(sum, {f.x, f.y}, from[j * kPitch]);
    }
    __syncwarp();  // they have been read
  }
  const uint32_t value = ptx::bf16_pair(sum / running.norm, 0.0f);
  const int dim = 32 * part + lane % 4 * 8 + lane / 4;
  args.p.out[(work.token * args.p.num_heads + head) * Dim + dim] = static_cast<uint16_t>(value);
}

template <int Dim>
__device__ __forceinline__ void fold_rows(const AttentionArguments& args, const ClusterWork& work,
                                          const ClusterRoom<Dim>& room) {
  constexpr int kParts = Dim / 32;
  const int rows = kClusterRows >> work.shift;  // of the CTA
  ptx::barrier_wait_cluster(room.results_barrier(), 0);
  for (int i = static_cast<int>(threadIdx.x) / 32; i < rows * kParts; i += static_cast<int>(blockDim.x) / 32) {
    const int slot = i / kParts, row = slot * work.cluster + work.rank;
    const int64_t head = work.head_at(args, row);
    if (head < 0) continue;
    if (work.position < 0) {
      uint16_t* out = args.p.out + (work.token * args.p.num_heads + head) * Dim;
      for (int d = static_cast<int>(threadIdx.x) % 32; d < Dim; d += 32) out[d] = 0;
      continue;
    }
    auto* const factors = room.factors(static_cast<int>(threadIdx.x) / 32);
    fold_row<Dim>(args, work, room.results() + slot * work.count * ClusterRoom<Dim>::kPitch, factors, head, i % kParts);
  }
}

// The tile with the position `back` before the token's, where it is among the first of this CTA; null: it is not.
template <int Dim>
__device__ __forceinline__ uint16_t* tile_of_position(const AttentionArguments& args, const ClusterWork& work,
                                                      const ClusterRoom<Dim>& room, int back) {
  if (work.position < 0 || back >= work.fresh) return nullptr;
  const int i = work.block_of(back);
  if (i < 0 || work.owner_of(i) != work.rank || i >= work.cluster * kGroups) return nullptr;
  return reinterpret_cast<uint16_t*>(room.tile(i >> work.shift));
}
template <int Dim>
__device__ __forceinline__ FreshPlaces fresh_places(const AttentionArguments& args, const ClusterWork& work,
                                                    const ClusterRoom<Dim>& room) {
  FreshPlaces places{work.token, work.position, work.kv, 0, work.fresh, work.has_fresh(), -1};
  places.query_pitch = room.kQueryPitch / 2;
  places.query = room.query(0);
  places.newest = room.newest();
  places.own_tile = tile_of_position(args, work, room, 0);
  places.previous_tile = tile_of_position(args, work, room, 1);
  if (work.position >= 0 && work.owner_of(work.block_of(0)) == work.rank) places.page = work.pages[work.block_of(0)];
  return places;
}
// Returns when the first block in `tile` has come.
template <int Dim>
__device__ __forceinline__ void wait_for_block(const ClusterRoom<Dim>& room, const uint16_t* tile) {
  const auto group = static_cast<int>((reinterpret_cast<const uint8_t*>(tile) - room.tile(0)) / Tile<Dim>::kBytes);
  ptx::barrier_wait(room.key_barrier(group), 0);
  ptx::barrier_wait(room.value_barrier(group), 0);
}

template <int Dim>
__global__ void __launch_bounds__(kGroups* kGroupWarps * 32)
    cluster_singles_kernel(const __grid_constant__ AttentionArguments args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const ClusterRoom<Dim> room{shared};
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = warp / kGroupWarps;
  const ClusterWork work(args);
  const layout::KvTile map{args.p.pages.num_kv_heads, Dim};
  const BlockBuffer<Dim> buffer{room.tile(group), room.key_barrier(group), room.value_barrier(group),
                                args.p.pages.data + work.kv * map.tile_size(), map.page_size()};
  const int first = group * work.cluster + work.rank;
  if (threadIdx.x % (kGroupWarps * 32) == 0) {
    ptx::barrier_init(buffer.key_barrier, 1);
    ptx::barrier_init(buffer.value_barrier, 1);
    if (group == 0) ptx::barrier_init(room.results_barrier(), 1);
    ptx::fence_barrier_init();
    if (group == 0) ptx::barrier_expect(room.results_barrier(), result_bytes<Dim>(args, work));
    // All but the step's own positions are older than the predecessor.
    if (first < work.count) buffer.fetch_block(work.pages[first]);
  }
  const FreshPlaces places = fresh_places(args, work, room);
  // A warp each: groups enough for query heads and two fresh keys and values.
  static_assert(kGroups * kGroupWarps >= kClusterRows + 4);
  const int heads = HeadTask<Dim>::count(args, places);
  HeadTask<Dim> task;
  if (warp < heads) task.prepare(args, places, warp);
  __syncthreads();      // the barriers of the CTA stand
  ptx::cluster_meet();  // those of all CTAs
  if (warp < heads && task.tile(places) != nullptr) wait_for_block(room, task.tile(places));
  if (first < work.count && first == work.count - 1) {
    ptx::barrier_wait(buffer.value_barrier, 0);
    const int last = work.in_block(first).last;
    clear_values_behind<Dim>(buffer.tile, last, static_cast<int>(threadIdx.x) % (kGroupWarps * 32), kGroupWarps * 32);
  }
  const int pair = 2 * (static_cast<int>(threadIdx.x) % 4);
  const ResultRow<Dim> result_rows[2] = {{args, work, room, pair}, {args, work, room, pair + 1}};
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  if (warp < heads) {
    task.fetch();
    task.run(places);
  }
  __syncthreads();  // the heads stand
  take_group_blocks<Dim>(args, work, room, places, buffer, result_rows, group, first);
  fold_rows<Dim>(args, work, room);
  if (args.p.act == nullptr) return;
  auto* flag = reinterpret_cast<volatile uint32_t*>(shared + ClusterRoom<Dim>::kFlagAt);
  if (!is_last_arrival(args.counters_of(work.single) + args.head_pairs(), args.head_pairs() * work.cluster, flag)) {
    return;
  }
  quantise_row(args, work.token, reinterpret_cast<uint32_t*>(shared + ClusterRoom<Dim>::kTopsAt));
}

template <int Dim>
void launch_cluster_singles(const AttentionArguments& args, device::Stream stream) {
  const int64_t slots = kClusterRows / args.cluster;
  const auto bytes = static_cast<int>(cluster_shared_bytes(Dim, slots, args.most_blocks));
  const cudaError_t allowed =
      cudaFuncSetAttribute(cluster_singles_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (allowed != cudaSuccess) throw LaunchFailure(std::string("attention, clusters: ") + cudaGetErrorString(allowed));
  const auto grid = static_cast<unsigned>(args.p.num_singles * args.head_pairs() * args.cluster);
  launch_chained_clusters(cluster_singles_kernel<Dim>, dim3(grid),
                          dim3(static_cast<unsigned>(kGroups * kGroupWarps * 32)), static_cast<unsigned>(args.cluster),
                          static_cast<size_t>(bytes), native(stream), args);
  check_launch("attention, clusters");
}

}  // namespace quadrille::kernels::cuda
