// SPDX-License-Identifier: Apache-2.0
// Stable counting sort of routes by expert. Few routes: one block, one launch. Many: count each chunk of 256 routes,
// scan over chunks and experts (its last block lists experts and tiles), scatter. No atomic decides a position: a
// route's rank is counted from the lanes, warps and chunks in front of it.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/plan_small.cuh"
#include "kernels/cuda/ptx/chain.cuh"

namespace quadrille::kernels::cuda {
namespace {

// --- One block -------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kSmallPlanWarps* kWarp)
    plan_small_kernel(const __grid_constant__ PlanRoutes p, int64_t num_routes, int steps, int segments) {
  __shared__ SmallPlanMemory<kSmallPlanWarps> memory;
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  plan_small(p, num_routes, steps, segments, memory);
}

// --- Many blocks -----------------------------------------------------------------------------------------------------

// scratch: [chunks][experts], then one counter of finished blocks of the scan.
__device__ __forceinline__ int32_t* finished_blocks(const PlanRoutes& p, int64_t num_chunks) {
  return p.scratch + num_chunks * p.num_experts;
}

__global__ void __launch_bounds__(kPlanChunk) count_kernel(PlanRoutes p, int64_t num_routes) {
  __shared__ int32_t counts[kPlanWindow];
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t chunk = blockIdx.x;
  const int32_t expert = expert_of_route(p, chunk * kPlanChunk + threadIdx.x, num_routes);
  for (int64_t first = 0; first < p.num_experts; first += kPlanWindow) {
    const int64_t left = p.num_experts - first;
    const int window = static_cast<int>(left < kPlanWindow ? left : kPlanWindow);
    for (int i = static_cast<int>(threadIdx.x); i < window; i += kPlanChunk) counts[i] = 0;
    __syncthreads();  // counts are zero
    if (expert >= first && expert < first + window) atomicAdd(&counts[expert - first], 1);
    __syncthreads();  // counts stand
    int32_t* row = p.scratch + chunk * p.num_experts + first;
    for (int i = static_cast<int>(threadIdx.x); i < window; i += kPlanChunk) row[i] = counts[i];
    __syncthreads();  // the next window may begin
  }
  if (chunk == 0 && threadIdx.x == 0) *finished_blocks(p, gridDim.x) = 0;
}

// Totals lie one place up in offsets (as in the CPU's sort) and become first slots.
struct TotalsSource {
  PlanRoutes p;
  __device__ int32_t rows(int64_t e) const { return __ldcg(p.offsets + e + 1); }
  __device__ int32_t place(int64_t e, int32_t before) const {
    p.offsets[e] = before;
    return before;
  }
  __device__ void finish(int32_t all) const { p.offsets[p.num_experts] = all; }
};

// Threads: [segment of the chunks][expert of the block].
__global__ void __launch_bounds__(kScanThreads) scan_kernel(PlanRoutes p, int64_t num_chunks) {
  constexpr int kPerLane = kScanSegments / kWarp;
  __shared__ int32_t partial[kScanExperts][kScanSegments + 1];
  __shared__ RowsTiles warp_sums[kWarp];
  __shared__ bool is_last;
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int column = static_cast<int>(threadIdx.x) % kScanExperts;
  const int segment = static_cast<int>(threadIdx.x) / kScanExperts;
  const int64_t expert = static_cast<int64_t>(blockIdx.x) * kScanExperts + column;
  const int64_t length = scan_segment_length(num_chunks);
  const int64_t begin = segment * length;
  const int64_t end = expert >= p.num_experts ? begin : (begin + length < num_chunks ? begin + length : num_chunks);

  int32_t sum = 0;
#pragma unroll 8
  for (int64_t c = begin; c < end; ++c) sum += p.scratch[c * p.num_experts + expert];
  partial[column][segment] = sum;
  __syncthreads();  // the segments' sums stand

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (warp < kScanExperts) {
    int32_t own[kPerLane];
    int32_t all = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      own[i] = all;
      all += partial[warp][lane * kPerLane + i];
    }
    const int32_t inclusive = warp_inclusive({all, 0}, lane).rows;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) partial[warp][lane * kPerLane + i] = inclusive - all + own[i];
    const int64_t of_warp = static_cast<int64_t>(blockIdx.x) * kScanExperts + warp;
    if (lane == kWarp - 1 && of_warp < p.num_experts) p.offsets[of_warp + 1] = inclusive;
  }
  __syncthreads();  // what lies in front of each segment stands

  int32_t before = partial[column][segment];
  for (int64_t c = begin; c < end; ++c) {
    int32_t* count = p.scratch + c * p.num_experts + expert;
    const int32_t here = *count;
    *count = before;
    before += here;
  }

  __threadfence();  // this block's totals, before its arrival is counted
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(finished_blocks(p, num_chunks), 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();  // the other blocks' totals, after their arrival was seen
  list_experts(TotalsSource{p}, p.num_experts, static_cast<int32_t>(p.tile_tokens), p.tiles, p.num_tiles, warp_sums);
}

__global__ void __launch_bounds__(kPlanChunk) scatter_kernel(PlanRoutes p, int64_t num_routes) {
  __shared__ uint4 memory[kChunkWarps * kPlanWindow / sizeof(uint4)];
  uint8_t* counts = reinterpret_cast<uint8_t*>(memory);
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t chunk = blockIdx.x;
  const int64_t route = chunk * kPlanChunk + threadIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int32_t expert =
      route >= num_routes ? -1 : local_expert(p.ids[route], p.expert_map, p.map_size, p.num_experts).expert;
  const int32_t before = expert < 0 ? 0 : p.offsets[expert] + p.scratch[chunk * p.num_experts + expert];
  const unsigned same = __match_any_sync(kAllLanes, expert);
  const int lower = lower_lanes(same, lane);
  if (expert < 0 && route < num_routes) store_slot(p, route, -1);
  for (int64_t first = 0; first < p.num_experts; first += kPlanWindow) {
    const bool here = expert >= first && expert < first + kPlanWindow;
    const int place = here ? static_cast<int>(expert - first) : 0;
    for (int i = static_cast<int>(threadIdx.x); i < kChunkWarps * kPlanWindow / 16; i += kPlanChunk) {
      memory[i] = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();  // counts are zero
    if (here && lower == 0) counts[warp * kPlanWindow + place] = static_cast<uint8_t>(__popc(same));
    __syncthreads();  // counts stand
    if (here) store_slot(p, route, before + rank_in_chunk(counts, warp, place, lower));
    __syncthreads();  // the next window may begin
  }
}

// No routes: nothing but the ends of the lists.
__global__ void plan_nothing_kernel(PlanRoutes p) {
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e <= p.num_experts) p.offsets[e] = 0;
  if (e == 0) *p.num_tiles = 0;
}

void plan_many(const PlanRoutes& p, int64_t num_routes, cudaStream_t stream) {
  const int64_t chunks = (num_routes + kPlanChunk - 1) / kPlanChunk;
  const auto grid = static_cast<unsigned>(chunks);
  launch_chained(count_kernel, grid, kPlanChunk, 0, stream, p, num_routes);
  check_launch("plan_routes, count");
  launch_chained(scan_kernel, ceil_div(p.num_experts, kScanExperts), kScanThreads, 0, stream, p, chunks);
  check_launch("plan_routes, scan");
  launch_chained(scatter_kernel, grid, kPlanChunk, 0, stream, p, num_routes);
  check_launch("plan_routes, scatter");
}

}  // namespace

void plan_routes(const PlanRoutes& p, device::Stream stream) {
  const int64_t num_routes = p.num_tokens * p.top_k;
  QD_CHECK(p.num_tokens >= 0 && p.top_k >= 1 && p.num_experts >= 1 && p.num_experts < INT32_MAX, "shapes of a plan");
  QD_CHECK(num_routes <= INT32_MAX, "at most 2^31 - 1 routes");
  QD_CHECK(p.tile_tokens >= 1 && p.tile_tokens <= INT32_MAX, "rows a tile");
  QD_CHECK(p.max_tiles >= max_route_tiles(num_routes, p.num_experts, p.tile_tokens), "places for all tiles");
  QD_CHECK(reinterpret_cast<uintptr_t>(p.tiles) % 16 == 0, "tiles on 16 bytes");
  if (num_routes == 0) {
    launch_chained(plan_nothing_kernel, ceil_div(p.num_experts + 1, kPlanChunk), kPlanChunk, 0, native(stream), p);
    return check_launch("plan_routes, nothing");
  }
  if (!is_small_plan(num_routes, p.num_experts)) return plan_many(p, num_routes, native(stream));
  const SmallPlanShape shape = small_plan_shape(num_routes, p.num_experts);
  launch_chained(plan_small_kernel, 1, shape.threads, 0, native(stream), p, num_routes, shape.steps, shape.segments);
  check_launch("plan_routes, one block");
}

}  // namespace quadrille::kernels::cuda
