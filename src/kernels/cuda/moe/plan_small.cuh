// SPDX-License-Identifier: Apache-2.0
// The plan of few routes by one block: the stable counting sort and the tile list. A route's rank is counted from the
// lanes and warps in front of it. Used by plan_routes.cu and route_and_plan.cu.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe/plan_tiles.cuh"

namespace quadrille::kernels::cuda {

__device__ __forceinline__ int32_t expert_of_route(const PlanRoutes& p, int64_t route, int64_t num_routes) {
  if (route >= num_routes) return -1;
  const LocalExpert found = local_expert(p.ids[route], p.expert_map, p.map_size, p.num_experts);
  if (found.bad && p.status != nullptr) atomicOr(p.status, kStatusBadExpertId);
  return found.expert;
}

__device__ __forceinline__ int lower_lanes(unsigned same, int lane) {
  return __popc(same & ((1u << lane) - 1u));
}

__device__ __forceinline__ void store_slot(const PlanRoutes& p, int64_t route, int32_t slot) {
  p.slot_of_route[route] = slot;
  if (slot >= 0) p.route_of_slot[slot] = static_cast<int32_t>(route);
}

// Shared memory of a block of kWarps warps.
template <int kWarps>
struct SmallPlanMemory {
  uint32_t counts[kWarps * kSmallPlanExperts / 2];  // uint16 [segments][experts]
  int32_t first_slot[kSmallPlanExperts];
  RowsTiles warp_sums[kWarp];
};

// The counts of all segments become what lies in front of each segment; the sum is the expert's rows.
struct SmallSource {
  PlanRoutes p;
  uint16_t* counts;
  int32_t* first_slot;
  int segments;
  __device__ int32_t rows(int64_t e) const {
    constexpr int kAtOnce = 4;  // loads of a batch do not wait for its stores
    int32_t sum = 0;
    for (int w = 0; w < segments; w += kAtOnce) {
      int32_t count[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) count[i] = w + i < segments ? counts[(w + i) * p.num_experts + e] : 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (w + i < segments) counts[(w + i) * p.num_experts + e] = static_cast<uint16_t>(sum);
        sum += count[i];
      }
    }
    return sum;
  }
  __device__ int32_t place(int64_t e, int32_t before) const {
    p.offsets[e] = before;
    first_slot[e] = before;
    return before;
  }
  __device__ void finish(int32_t all) const { p.offsets[p.num_experts] = all; }
};

// All threads of the block call it.
template <int kWarps>
__device__ __forceinline__ void plan_small(const PlanRoutes& p, int64_t num_routes, int steps, int segments,
                                           SmallPlanMemory<kWarps>& memory) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t first_route = static_cast<int64_t>(warp) * steps * kWarp + lane;
  int32_t expert[kSmallPlanSteps];
#pragma unroll
  for (int s = 0; s < kSmallPlanSteps; ++s) {
    expert[s] = s < steps ? expert_of_route(p, first_route + s * kWarp, num_routes) : -1;
  }
  const int words = (segments * static_cast<int>(p.num_experts) + 1) / 2;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x)) memory.counts[i] = 0;
  __syncthreads();  // counts are zero

  uint16_t* counts = reinterpret_cast<uint16_t*>(memory.counts);
  uint16_t* own = counts + warp * p.num_experts;  // warps behind the segments have no routes and never touch it
#pragma unroll
  for (int s = 0; s < kSmallPlanSteps; ++s) {
    if (s >= steps) break;
    const unsigned same = __match_any_sync(kAllLanes, expert[s]);
    if (expert[s] >= 0 && lower_lanes(same, lane) == 0) own[expert[s]] += static_cast<uint16_t>(__popc(same));
    __syncwarp();  // the next step counts on
  }
  __syncthreads();  // all counts stand
  list_experts(SmallSource{p, counts, memory.first_slot, segments}, p.num_experts, static_cast<int32_t>(p.tile_tokens),
               p.tiles, p.num_tiles, memory.warp_sums);
  __syncthreads();  // first slots and what lies in front of each segment stand

#pragma unroll
  for (int s = 0; s < kSmallPlanSteps; ++s) {
    if (s >= steps) break;
    const unsigned same = __match_any_sync(kAllLanes, expert[s]);
    const int lower = lower_lanes(same, lane);
    const int32_t slot = expert[s] < 0 ? -1 : memory.first_slot[expert[s]] + own[expert[s]] + lower;
    __syncwarp();  // all lanes have read
    if (expert[s] >= 0 && lower == 0) own[expert[s]] += static_cast<uint16_t>(__popc(same));
    __syncwarp();  // the next step reads
    const int64_t route = first_route + s * kWarp;
    if (route < num_routes) store_slot(p, route, slot);
  }
}

// A divisor of a warp: lanes behind the last route have no expert.
inline constexpr int kRoutesAtOnce = 8;

// One warp: slots and tiles of at most 32 routes, a route a lane, who counts the others. The offsets are not written.
__device__ __forceinline__ void plan_few(const PlanRoutes& p, int num_routes, int lane) {
  const int32_t id = lane < num_routes ? p.ids[lane] : -1;
  const LocalExpert found = local_expert(id, p.expert_map, p.map_size, p.num_experts);
  if (found.bad && p.status != nullptr) atomicOr(p.status, kStatusBadExpertId);
  const int32_t own = found.expert;
  const unsigned same = __match_any_sync(kAllLanes, own);
  const int32_t lower = lower_lanes(same, lane), rows = __popc(same);
  const auto tile_tokens = static_cast<int32_t>(p.tile_tokens);
  int32_t own_tiles = 0;
#pragma unroll 1
  for (int32_t left = own >= 0 && lower == 0 ? rows : 0; left > 0; left -= tile_tokens) ++own_tiles;  // no division
  RowsTiles before = {0, 0};
  int32_t all_tiles = 0;
#pragma unroll 1
  for (int first = 0; first < num_routes; first += kRoutesAtOnce) {
#pragma unroll
    for (int j = 0; j < kRoutesAtOnce; ++j) {
      const int32_t other = __shfl_sync(kAllLanes, own, first + j),
                    tiles = __shfl_sync(kAllLanes, own_tiles, first + j);
      before.rows += other >= 0 && other < own ? 1 : 0;
      before.tiles += other < own ? tiles : 0;
      all_tiles += tiles;
    }
  }
#pragma unroll 1
  for (int32_t i = 0; i < own_tiles; ++i) {
    const int32_t done = i * tile_tokens;
    store_tile(p.tiles, before.tiles + i,
               {own, before.rows + done, min(rows - done, tile_tokens), before.tiles, own_tiles, {0, 0, 0}});
  }
  if (lane == 0) *p.num_tiles = all_tiles;
  if (lane < num_routes) store_slot(p, lane, own >= 0 ? before.rows + lower : -1);
}

// The offsets that belong to it, by the warps of the block from `first_warp` on.
__device__ __forceinline__ void offsets_of_few(const PlanRoutes& p, int num_routes, int lane, int first_warp) {
  const auto threads = static_cast<int32_t>(blockDim.x) - first_warp * kWarp;
  const auto thread = static_cast<int32_t>(threadIdx.x) - first_warp * kWarp;
  const int32_t id = lane < num_routes ? p.ids[lane] : -1;
  const int32_t own = local_expert(id, p.expert_map, p.map_size, p.num_experts).expert;
#pragma unroll 1
  for (int32_t first = 0; first <= p.num_experts; first += threads) {
    const int32_t e = first + thread;
    int32_t before = 0;
#pragma unroll 1
    for (int route = 0; route < num_routes; route += kRoutesAtOnce) {
#pragma unroll
      for (int j = 0; j < kRoutesAtOnce; ++j) {
        const int32_t other = __shfl_sync(kAllLanes, own, route + j);
        before += other >= 0 && other < e ? 1 : 0;
      }
    }
    if (e <= p.num_experts) p.offsets[e] = before;
  }
}

// Both, slots by the first of at least two warps. `ids` in shared memory. All threads of the block call it; ends
// without a barrier.
__device__ __forceinline__ void plan_tiny(const PlanRoutes& p, int num_routes) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (threadIdx.x < kWarp) return plan_few(p, num_routes, lane);
  offsets_of_few(p, num_routes, lane, 1);
}

}  // namespace quadrille::kernels::cuda
