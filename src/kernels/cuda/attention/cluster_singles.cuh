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

// --- Heads: a warp each ---

// Head `number` of a CTA: its query rows, then key and value of the positions of this step, newest first.
template <int Dim>
class HeadTask {
 public:
  __device__ __forceinline__ static int count(const AttentionArguments& args, const ClusterWork& work) {
    return static_cast<int>(args.heads.packed()) + (work.has_fresh() ? 2 * work.fresh : 0);
  }

  // Reads nothing that is younger than the predecessor.
  __device__ __forceinline__ void prepare(const AttentionArguments& args, const ClusterWork& work,
                                          const ClusterRoom<Dim>& room, int number) {
    const DeviceQkv& p = args.p.projection;
    const int rows = static_cast<int>(args.heads.packed());
    const int64_t kv_heads = p.pages.num_kv_heads;
    const bool is_query = number < rows;
    const int back = is_query ? 0 : (number - rows) / 2, kind = is_query ? 0 : (number - rows) % 2;
    const int64_t query_head = is_query ? work.head_at(args, number) : -1;
    const int64_t head = is_query ? query_head : p.num_heads + kind * kv_heads + work.kv;
    from_ = head < 0 ? nullptr : p.qkv + static_cast<int64_t>(work.token - back) * p.qkv_pitch + head * Dim;
    to_ = is_query ? room.query(number) : room.fresh(back, kind);
    page_ = nullptr;
    const bool has_norm = p.norm == HeadNorm::kPerHead && kind == 0;
    head_.load_tables(p, has_norm ? (is_query ? p.q_norm : p.k_norm) : nullptr, kind == 0, work.position - back);
    if (is_query || back != 0 || work.owner_of(work.block_of(0)) != work.rank) return;
    const layout::KvTile map{kv_heads, Dim};
    const int64_t place = work.position % kKeyBlock;
    page_ = args.p.pages.data + work.pages[work.block_of(0)] * map.page_size();
#pragma unroll
    for (int m = 0; m < kHeld; ++m) {
      const int64_t dim = static_cast<int>(threadIdx.x) % 32 + 32 * m;
      at_[m] =
          static_cast<int32_t>(kind == 0 ? map.key_offset(work.kv, place, dim) : map.value_offset(work.kv, place, dim));
    }
  }
  __device__ __forceinline__ void run() const {
    if (from_ == nullptr) return;
    uint16_t made[kHeld];
    head_.make(from_, made);
#pragma unroll
    for (int m = 0; m < kHeld; ++m) {
      to_[static_cast<int>(threadIdx.x) % 32 + 32 * m] = made[m];
      if (page_ != nullptr) page_[at_[m]] = made[m];
    }
  }

 private:
  static constexpr int kHeld = FreshHead<Dim>::kHeld;
  FreshHead<Dim> head_;
  const uint16_t* from_;
  uint16_t* to_;
  uint16_t* page_;  // of the token, null: not written
  int32_t at_[kHeld];
};

// --- Blocks: a group of four warps each ---

// The step's own positions go into a block that was fetched before they were written, and values behind the token's
// position become zero. All threads of the group, behind both halves.
template <int Dim>
__device__ __forceinline__ void refresh_block(const ClusterWork& work, const ClusterRoom<Dim>& room, int i,
                                              uint8_t* tile, int thread) {
  constexpr int kThreads = kGroupWarps * 32;
  const layout::KvTile map{1, Dim};
  auto* to = reinterpret_cast<uint16_t*>(tile);
  for (int back = 0; back < work.fresh; ++back) {
    if (work.block_of(back) != i) continue;
    const int64_t place = (work.position - back) % kKeyBlock;
    if (thread < Dim) {
      to[map.key_offset(0, place, thread)] = room.fresh(back, 0)[thread];
      to[map.value_offset(0, place, thread)] = room.fresh(back, 1)[thread];
    }
  }
  const int last = work.in_block(i).last;
  if (last < kKeyBlock - 1) clear_values_behind<Dim>(tile, last, thread, kThreads);
  ptx::fence_async_shared();  // before the group's next block, which may come into the same place
}

// Scores of the warp's 16 keys: [j] keys 8 j + 2 t, + 1 of them, row g.
template <int Dim>
__device__ __forceinline__ void share_of_scores(const ClusterRoom<Dim>& room, const uint8_t* tile, int warp,
                                                const SeenPart& seen, float (&score)[2][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t keys = ptx::shared_address(tile);
  const uint16_t* row = room.query(lane / 4) + 8 * (lane % 4);
  float sum[2][4] = {};
#pragma unroll
  for (int c = 0; c < Dim / 32; ++c) {
    const uint4 query = *reinterpret_cast<const uint4*>(row + 32 * c);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t key[4];
      ptx::load_matrices(keys + key_piece_at(2 * warp + j, c, lane), key);
      ptx::mma_bf16(sum[j], query.x, 0, query.y, 0, key[0], key[1]);
      ptx::mma_bf16(sum[j], query.z, 0, query.w, 0, key[2], key[3]);
    }
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = 16 * warp + 8 * j + lane % 4 * 2 + e;
      score[j][e] = key >= seen.first && key <= seen.last ? sum[j][e] : -__builtin_inff();
    }
  }
}

// The row's largest score of the block times scale2, known to all warps of the group, and the weights of all keys.
// In two steps with the group's barrier between and behind.
template <int Dim>
__device__ __forceinline__ void note_largest(const ClusterRoom<Dim>& room, int group, int warp,
                                             const float (&score)[2][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float largest = fmaxf(fmaxf(score[0][0], score[0][1]), fmaxf(score[1][0], score[1][1]));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
  if (lane % 4 == 0) room.maxima(group)[warp * kClusterRows + lane / 4] = largest;
}
template <int Dim>
__device__ __forceinline__ float note_weights(const ClusterRoom<Dim>& room, int group, int warp, float scale2,
                                              const float (&score)[2][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* maxima = room.maxima(group) + lane / 4;
  const float top =
      fmaxf(fmaxf(maxima[0], maxima[kClusterRows]), fmaxf(maxima[2 * kClusterRows], maxima[3 * kClusterRows])) * scale2;
  float power[2][2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) power[j][e] = ptx::exp2_fast(__builtin_fmaf(score[j][e], scale2, -top));
  }
  room.weights(group)[warp * 32 + lane] =
      make_uint2(ptx::bf16_pair(power[0][0], power[0][1]), ptx::bf16_pair(power[1][0], power[1][1]));
  return top;
}

// Where row lane / 4 of block i goes: [kPitch] floats of the CTA that folds it. 0: nobody wants it.
template <int Dim>
struct ResultPlace {
  uint32_t address, barrier;

  __device__ __forceinline__ ResultPlace(const AttentionArguments& args, const ClusterWork& work,
                                         const ClusterRoom<Dim>& room, int i) {
    const int row = static_cast<int>(threadIdx.x) % 32 / 4;
    const int owner = work.owner_of(row), slot = row / work.cluster;
    const float* to = room.results(args.groups) + (slot * work.count + i) * ClusterRoom<Dim>::kPitch;
    address = work.head_at(args, row) < 0 ? 0 : ptx::address_in(ptx::shared_address(to), owner);
    barrier = ptx::address_in(room.results_barrier(), owner);
  }
  __device__ __forceinline__ void store(int at, float a, float b, float c, float d) const {
    if (address != 0) ptx::store_remote(address + 4 * at, a, b, c, d, barrier);
  }
};

// Sums of the values: a warp has 32 dimensions; warp 0 has the sum of the weights as well. In the results dimension
// 32 c + 8 j + 2 t + e lies at 32 c + 8 t + 2 j + e.
template <int Dim>
__device__ __forceinline__ void share_of_values(const ClusterRoom<Dim>& room, int group, int warp, const uint8_t* tile,
                                                float top, const ResultPlace<Dim>& place) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (warp >= Dim / 32) return;
  Weights w;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const uint2 a = room.weights(group)[s * 32 + lane];
    w.a[s][0] = a.x;
    w.a[s][2] = a.y;
    w.a[s][1] = w.a[s][3] = 0;
  }
  float sum[4][4];
  block_values<Dim>(w, tile, warp, lane, sum);
  const int at = 32 * warp + 8 * (lane % 4);
  place.store(at, sum[0][0], sum[0][1], sum[1][0], sum[1][1]);
  place.store(at + 4, sum[2][0], sum[2][1], sum[3][0], sum[3][1]);
  if (warp != 0) return;
  float norm[4] = {};
#pragma unroll
  for (int s = 0; s < 4; ++s) ptx::mma_bf16(norm, w.a[s][0], 0, w.a[s][2], 0, kOnes, kOnes);
  if (lane % 4 == 0) place.store(Dim, top, norm[0], 0.0f, 0.0f);
}

// The blocks of one group of warps.
template <int Dim>
__device__ __forceinline__ void take_group_blocks(const AttentionArguments& args, const ClusterWork& work,
                                                  const ClusterRoom<Dim>& room, const BlockBuffer<Dim>& buffer,
                                                  int group, int first) {
  const int thread = static_cast<int>(threadIdx.x) % (kGroupWarps * 32);
  const int warp = thread / 32, stride = work.cluster * args.groups;
  uint32_t parity = 0;
  for (int i = first; i < work.count; i += stride) {
    const int32_t next_page = i + stride < work.count ? work.pages[i + stride] : -1;
    ptx::barrier_wait(buffer.key_barrier, parity);
    if (i >= work.block_of(work.fresh - 1)) {
      ptx::barrier_wait(buffer.value_barrier, parity);
      refresh_block<Dim>(work, room, i, buffer.tile, thread);
      ptx::warpgroup_barrier(1 + group);  // the block is as the token sees it
    }
    float score[2][2];
    share_of_scores<Dim>(room, buffer.tile, warp, work.in_block(i), score);
    note_largest<Dim>(room, group, warp, score);
    ptx::warpgroup_barrier(1 + group);  // the maxima stand, the keys have been read
    if (thread == 0 && next_page >= 0) buffer.fetch_keys(next_page);
    const float top = note_weights<Dim>(room, group, warp, args.scale2, score);
    const ResultPlace<Dim> place(args, work, room, i);
    ptx::barrier_wait(buffer.value_barrier, parity);
    ptx::warpgroup_barrier(1 + group);  // the weights stand
    share_of_values<Dim>(room, group, warp, buffer.tile, top, place);
    parity ^= 1;
    if (next_page < 0) continue;
    ptx::warpgroup_barrier(1 + group);  // the values have been read
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

// Row `row` of the heads, 64 dimensions of it, by one warp: a lane has two.
template <int Dim>
__device__ __forceinline__ void fold_row(const AttentionArguments& args, const ClusterWork& work, const float* results,
                                         int64_t head, int part) {
  constexpr int kPitch = ClusterRoom<Dim>::kPitch;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int at = 64 * part + 2 * lane;
  const bool holds = at < Dim;
  Running running;
  float2 sum = make_float2(0.0f, 0.0f);
  for (int base = 0; base < work.count; base += kFoldBlocks) {
    const float* from = results + base * kPitch;
    const int count = min(kFoldBlocks, work.count - base);
    const float2 own = lane < count ? *reinterpret_cast<const float2*>(from + lane * kPitch + Dim)
                                    : make_float2(-__builtin_inff(), 0.0f);
    const BlockFactors factors = block_factors(own.x, running.top);
    running.top = factors.top;
#pragma unroll 8
    for (int j = 0; j < count; ++j) {
      const Fold fold{__shfl_sync(kAllLanes, factors.fold.keep, j), __shfl_sync(kAllLanes, factors.fold.take, j)};
      running.norm = folded(running.norm, fold, __shfl_sync(kAllLanes, own.y, j));
      const float2 block = holds ? *reinterpret_cast<const float2*>(from + j * kPitch + at) : make_float2(0.0f, 0.0f);
      sum.x = folded(sum.x, fold, block.x);
      sum.y = folded(sum.y, fold, block.y);
    }
  }
  if (!holds) return;
  const int dim = at / 32 * 32 + at % 8 / 2 * 8 + at % 32 / 8 * 2;
  uint16_t* out = args.p.out + (work.token * args.p.num_heads + head) * Dim;
  *reinterpret_cast<uint32_t*>(out + dim) = ptx::bf16_pair(sum.x / running.norm, sum.y / running.norm);
}

template <int Dim>
__device__ __forceinline__ void fold_rows(const AttentionArguments& args, const ClusterWork& work,
                                          const ClusterRoom<Dim>& room) {
  constexpr int kParts = (Dim + 63) / 64;
  const int rows = kClusterRows / work.cluster;  // of the CTA
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
    fold_row<Dim>(args, work, room.results(args.groups) + slot * work.count * ClusterRoom<Dim>::kPitch, head,
                  i % kParts);
  }
}

template <int Dim>
__global__ void __launch_bounds__(kMostGroups* kGroupWarps * 32)
    cluster_singles_kernel(const __grid_constant__ AttentionArguments args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const ClusterRoom<Dim> room{shared};
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = static_cast<int>(blockDim.x) / 32;
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
    if (first < work.count) {
      const int32_t page = work.pages[first];
      buffer.fetch_keys(page);
      buffer.fetch_values(page);
    }
  }
  const int heads = work.position < 0 ? 0 : HeadTask<Dim>::count(args, work);
  HeadTask<Dim> task;
  if (warp < heads) task.prepare(args, work, room, warp);
  ptx::cluster_meet();  // the barriers of all CTAs stand
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  for (int number = warp; number < heads; number += warps) {
    if (number != warp) task.prepare(args, work, room, number);
    task.run();
  }
  __syncthreads();  // the heads stand
  take_group_blocks<Dim>(args, work, room, buffer, group, first);
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
  const auto bytes = static_cast<int>(cluster_shared_bytes(Dim, args.groups, slots, args.most_blocks));
  const cudaError_t allowed =
      cudaFuncSetAttribute(cluster_singles_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (allowed != cudaSuccess) throw LaunchFailure(std::string("attention, clusters: ") + cudaGetErrorString(allowed));
  const auto grid = static_cast<unsigned>(args.p.num_singles * args.head_pairs() * args.cluster);
  launch_chained_clusters(cluster_singles_kernel<Dim>, dim3(grid),
                          dim3(static_cast<unsigned>(args.groups * kGroupWarps * 32)),
                          static_cast<unsigned>(args.cluster), static_cast<size_t>(bytes), native(stream), args);
  check_launch("attention, clusters");
}

}  // namespace quadrille::kernels::cuda
