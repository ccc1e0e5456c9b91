// SPDX-License-Identifier: Apache-2.0
// Few tokens from their rows to the list of work in one launch. A CTA makes the logits of up to eight tokens and eight
// experts, whose rows of the weight it fetches before the kernel in front of it has ended; the last that arrives of
// those with the same tokens chooses their experts, the last of these plans. What is one CTA's work is latency alone: a
// launch of its own costs more than the work.
#include <cuda_pipeline.h>

#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/plan_small.cuh"
#include "kernels/cuda/moe/route_token.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kExperts = kWarps;  // of a CTA: one a warp
constexpr int kMostRoutes = static_cast<int>(kMostFusedTokens) * 32;
static_assert(kRouteArrivals > kMostFusedTokens / 4, "a word for all, and one for each group of tokens");
static_assert(kMostRoutes <= kWarps * kSmallPlanSteps * kWarp, "a block plans all routes");

// Rows of x in shared memory: two that are read at once lie 16 banks apart where k is a multiple of 64.
constexpr int64_t x_pitch(int64_t k) {
  return k + 32;
}
// First the experts' rows, then those of x; behind the logits: the words of the warps that route.
constexpr int64_t stage_bytes(int64_t k, int tokens) {
  return 2 * (kExperts * k + tokens * x_pitch(k));
}
int64_t words_a_warp(const RouteAndPlan& p) {
  return (kept_route_words(p.route.num_experts, p.route.num_groups) + 3) / 4 * 4;
}

// The sums of one expert with the rows of kTokens tokens. Two tokens share a load: half a warp has one of them, a
// thread two neighbouring lanes of the sum. One token alone: a lane a thread.
template <int kTokens>
struct Dots {
  static constexpr int kOwn = kTokens / 2;  // tokens of a thread
  static constexpr int kBatch = 8;
  float sum[kOwn][2] = {};

  __device__ __forceinline__ void run(const uint16_t* x, const uint16_t* w, int k, int lane) {
    const int half = lane / 16;
    const uint32_t* x_words = reinterpret_cast<const uint32_t*>(x) + half * (x_pitch(k) / 2);
    const uint32_t* w_words = reinterpret_cast<const uint32_t*>(w);
    const int pitch = static_cast<int>(x_pitch(k));
    int i = lane % 16;
    for (; i + (kBatch - 1) * 16 < k / 2; i += kBatch * 16) steps<kBatch>(x_words + i, w_words + i, pitch);
    for (; i < k / 2; i += 16) steps<1>(x_words + i, w_words + i, pitch);
  }
  // kCount steps of the chains, with all loads in front.
  template <int kCount>
  __device__ __forceinline__ void steps(const uint32_t* x, const uint32_t* w, int pitch) {
    uint32_t of_w[kCount], of_x[kCount][kOwn];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      of_w[j] = w[j * 16];
#pragma unroll
      for (int t = 0; t < kOwn; ++t) of_x[j][t] = x[t * pitch + j * 16];
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float low = numerics::float_of(of_w[j] << 16), high = numerics::float_of(of_w[j] & 0xffff0000u);
#pragma unroll
      for (int t = 0; t < kOwn; ++t) {
        sum[t][0] = __builtin_fmaf(numerics::float_of(of_x[j][t] << 16), low, sum[t][0]);
        sum[t][1] = __builtin_fmaf(numerics::float_of(of_x[j][t] & 0xffff0000u), high, sum[t][1]);
      }
    }
  }
  // The logit of token lane / 16 + 2 * (lane % 16), for the lanes that have one.
  __device__ __forceinline__ float logit(int lane) {
    float own = 0.0f;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
#pragma unroll
      for (int distance = 8; distance > 0; distance /= 2) {  // lanes of the sum 16, 8, 4, 2 apart
        sum[t][0] = sum[t][0] + __shfl_xor_sync(kWholeWarp, sum[t][0], distance);
        sum[t][1] = sum[t][1] + __shfl_xor_sync(kWholeWarp, sum[t][1], distance);
      }
      if (lane % 16 == t) own = sum[t][0] + sum[t][1];
    }
    return numerics::canonical(own);
  }
  static __device__ __forceinline__ int token(int lane) { return lane % 16 < kOwn ? lane / 16 + lane % 16 * 2 : -1; }
};

template <>
struct Dots<1> {
  static constexpr int kBatch = 16;
  float sum = 0.0f;

  __device__ __forceinline__ void run(const uint16_t* x, const uint16_t* w, int k, int lane) {
    int i = lane;
    for (; i + (kBatch - 1) * kWarp < k; i += kBatch * kWarp) steps<kBatch>(x + i, w + i);
    for (; i < k; i += kWarp) steps<1>(x + i, w + i);
  }
  template <int kCount>
  __device__ __forceinline__ void steps(const uint16_t* x, const uint16_t* w) {
    uint16_t of_x[kCount], of_w[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      of_x[j] = x[j * kWarp];
      of_w[j] = w[j * kWarp];
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      sum = __builtin_fmaf(numerics::bf16_to_f32(of_x[j]), numerics::bf16_to_f32(of_w[j]), sum);
    }
  }
  __device__ __forceinline__ float logit(int) { return numerics::canonical(warp_tree_sum(sum)); }
  static __device__ __forceinline__ int token(int lane) { return lane == 0 ? 0 : -1; }
};

// Rows of x from the predecessor; those behind the last token stay what they are and make sums that nobody stores.
template <int kTokens>
__device__ __forceinline__ void load_rows(const DeviceRouterLogits& p, int64_t first_token, uint16_t* x_rows) {
  const int vectors = static_cast<int>(p.k) / 8;
  const int64_t left = p.num_tokens - first_token;
  const int tokens = left < kTokens ? static_cast<int>(left) : kTokens;
  for (int t = 0; t < tokens; ++t) {
    const uint4* from = reinterpret_cast<const uint4*>(p.x + (first_token + t) * p.k);
    uint4* to = reinterpret_cast<uint4*>(x_rows + t * x_pitch(p.k));
    for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
      __pipeline_memcpy_async(to + i, from + i, sizeof(uint4));
    }
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// What the last CTA needs beside the words of its warps.
struct TailMemory {
  SmallPlanMemory<kWarps> plan;
  int32_t ids[kWarps * 32];
};

// Whether this CTA is the last of `count` to arrive at the word, which is then zero again. What the CTAs have written
// before is visible to all threads of the last one.
__device__ __forceinline__ bool arrives_last(uint32_t* word, uint32_t count) {
  __shared__ bool is_last;
  __syncthreads();  // the CTA has written
  if (threadIdx.x == 0) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(word) : "memory");
    is_last = before == count - 1;
    if (is_last) *word = 0;  // for the next launch
  }
  __syncthreads();
  return is_last;
}

// Behind the last logit. The last CTA of each group of tokens chooses for them, a warp a token; the last of these
// plans.
template <int kTokens, int kHeld>
__device__ __forceinline__ void finish(const RouteAndPlan& p, int words, int steps, int segments, uint32_t* memory,
                                       TailMemory& tail) {
  static_assert(kTokens <= kWarps, "a warp a token");
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int num_tokens = static_cast<int>(p.logits.num_tokens), top_k = static_cast<int>(p.route.top_k);
  const bool one_group = gridDim.y == 1;
  if (!arrives_last(p.arrivals + (one_group ? 0 : 1 + blockIdx.y), gridDim.x)) return;
  const int token = static_cast<int>(blockIdx.y) * kTokens + warp;
  if (warp < kTokens && token < num_tokens) {
    route_held_token<kHeld>(p.route, token, lane, memory + warp * words, tail.ids + warp * top_k);
  }
  if (!one_group && !arrives_last(p.arrivals, gridDim.y)) return;
  __syncthreads();  // all ids stand
  PlanRoutes plan = p.plan;
  if (one_group) plan.ids = tail.ids;
  if (one_group && num_tokens * top_k <= kWarp) {
    plan_tiny(plan, num_tokens * top_k);
  } else {
    plan_small(plan, int64_t{num_tokens} * top_k, steps, segments, tail.plan);
  }
}

template <int kTokens, int kHeld>
__global__ void __launch_bounds__(kThreads, 2)
    route_and_plan_kernel(const __grid_constant__ RouteAndPlan p, int words, int steps, int segments) {
  extern __shared__ __align__(16) uint4 stage[];
  __shared__ __align__(8) uint64_t weights_stand;
  __shared__ TailMemory tail;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int k = static_cast<int>(p.logits.k);
  const int64_t first_expert = static_cast<int64_t>(blockIdx.x) * kExperts;
  const int64_t first_token = static_cast<int64_t>(blockIdx.y) * kTokens;
  uint16_t* const w_rows = reinterpret_cast<uint16_t*>(stage);
  uint16_t* const x_rows = w_rows + kExperts * k;
  if (threadIdx.x == 0) {
    const uint32_t barrier = ptx::shared_address(&weights_stand);
    const int64_t left = p.logits.num_experts - first_expert;
    const uint32_t bytes = static_cast<uint32_t>(left < kExperts ? left : kExperts) * 2u * static_cast<uint32_t>(k);
    ptx::barrier_init(barrier, 1);
    ptx::fence_barrier_init();
    ptx::barrier_expect(barrier, bytes);
    ptx::bulk_copy(ptx::shared_address(w_rows), p.logits.weight + first_expert * k, bytes, barrier);
  }
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  load_rows<kTokens>(p.logits, first_token, x_rows);
  __syncthreads();  // rows of x and the barrier stand
  ptx::barrier_wait(ptx::shared_address(&weights_stand), 0);

  const int64_t expert = first_expert + warp;
  if (expert < p.logits.num_experts) {
    Dots<kTokens> dots;
    dots.run(x_rows, w_rows + warp * k, k, lane);
    const float logit = dots.logit(lane);
    const int own = Dots<kTokens>::token(lane);
    if (own >= 0 && first_token + own < p.logits.num_tokens) {
      p.logits.logits[(first_token + own) * p.logits.num_experts + expert] = logit;
    }
  }
  finish<kTokens, kHeld>(p, words, steps, segments, reinterpret_cast<uint32_t*>(stage), tail);
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

void check_problem(const RouteAndPlan& p) {
  const DeviceRouterLogits& l = p.logits;
  QD_CHECK(fits_route_and_plan(l.num_tokens, l.num_experts, p.route.top_k, l.k) &&
               p.plan.num_experts <= kSmallPlanExperts && p.plan.num_experts >= 1,
           "a problem that fits_route_and_plan() lets pass");
  QD_CHECK(!l.sigmoid && p.route.logits == l.logits && p.plan.ids == p.route.ids, "each step reads the one before");
  QD_CHECK(p.route.num_tokens == l.num_tokens && p.plan.num_tokens == l.num_tokens &&
               p.route.num_experts == l.num_experts && p.plan.top_k == p.route.top_k,
           "one shape for all steps");
  QD_CHECK(p.route.num_groups >= 1 && l.num_experts % p.route.num_groups == 0 && p.route.groups_kept >= 1 &&
               p.route.groups_kept <= p.route.num_groups && p.route.top_k >= 1 &&
               p.route.top_k <= l.num_experts / p.route.num_groups * p.route.groups_kept,
           "a rule that check_router_rule lets pass");
  QD_CHECK(
      p.plan.tile_tokens >= 1 && p.plan.tile_tokens <= INT32_MAX &&
          p.plan.max_tiles >= max_route_tiles(l.num_tokens * p.route.top_k, p.plan.num_experts, p.plan.tile_tokens),
      "places for all tiles");
  QD_CHECK(on_16_bytes(l.x) && on_16_bytes(l.weight) && on_16_bytes(p.plan.tiles), "rows and tiles on 16 bytes");
  QD_CHECK(p.arrivals != nullptr, "words to count arrivals in");
}

template <int kTokens, int kHeld>
void launch(const RouteAndPlan& p, cudaStream_t stream) {
  const int64_t words = words_a_warp(p);
  const int64_t finish_bytes = kWarps * words * static_cast<int64_t>(sizeof(uint32_t));
  const int64_t first_bytes = stage_bytes(p.logits.k, kTokens);
  const int64_t bytes = first_bytes > finish_bytes ? first_bytes : finish_bytes;
  const auto kernel = route_and_plan_kernel<kTokens, kHeld>;
  if (bytes > 16 * 1024) {
    QD_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)) ==
                 cudaSuccess,
             "shared memory of the router");
  }
  const SmallPlanShape shape = small_plan_shape(p.logits.num_tokens * p.route.top_k, p.plan.num_experts, kWarps);
  const dim3 grid(ceil_div(p.logits.num_experts, kExperts), ceil_div(p.logits.num_tokens, kTokens));
  launch_chained(kernel, grid, kThreads, static_cast<size_t>(bytes), stream, p, static_cast<int>(words), shape.steps,
                 shape.segments);
  check_launch("route_and_plan");
}

template <int kTokens>
void launch_held(const RouteAndPlan& p, cudaStream_t stream) {
  if (p.logits.num_experts <= 4 * kWarp) return launch<kTokens, 4>(p, stream);
  launch<kTokens, 16>(p, stream);
}

}  // namespace

void route_and_plan(const RouteAndPlan& p, device::Stream stream) {
  check_problem(p);
  // Eight rows of experts and four of x of 8,192 are 197 KB; eight of x do not fit.
  constexpr int64_t kWide = 6144;
  if (p.logits.num_tokens == 1) return launch_held<1>(p, native(stream));
  if (p.logits.num_tokens <= 4 || p.logits.k > kWide) return launch_held<4>(p, native(stream));
  launch_held<8>(p, native(stream));
}

}  // namespace quadrille::kernels::cuda
