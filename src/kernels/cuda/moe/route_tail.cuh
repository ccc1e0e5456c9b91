// SPDX-License-Identifier: Apache-2.0
// What follows the logits in the launch that made them: the CTA that arrives last chooses, a warp a token, and plans.
// Used by route_and_plan.cu and norm_and_route.cu.
#pragma once

#include "core/check.h"
#include "kernels/cuda/moe/plan_small.cuh"
#include "kernels/cuda/moe/route_token.cuh"

namespace quadrille::kernels::cuda {

inline constexpr int kTailWarps = 8;
static_assert(kMostFusedTokens * 32 <= kTailWarps * kSmallPlanSteps * kWarp, "a block plans all routes");

// Words of shared memory that a warp chooses in.
inline int64_t words_a_warp(const RouteAndPlan& p) {
  return (kept_route_words(p.route.num_experts, p.route.num_groups) + 3) / 4 * 4;
}

// What the last CTA needs beside the words of its warps.
struct TailMemory {
  SmallPlanMemory<kTailWarps> plan;
  int32_t ids[kTailWarps * 32];
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

// How the last CTAs work.
struct TailShape {
  int words;            // words_a_warp()
  int steps, segments;  // of plan_small()
};
inline TailShape tail_shape(const RouteAndPlan& p) {
  const SmallPlanShape plan = small_plan_shape(p.logits.num_tokens * p.route.top_k, p.plan.num_experts, kTailWarps);
  return {static_cast<int>(words_a_warp(p)), plan.steps, plan.segments};
}

// Behind the last logit. The last of the `ctas` of each group of tokens chooses for them, a warp a token; the last of
// these plans. `memory`: `words` a warp.
template <int kTokens, int kHeld>
__device__ __forceinline__ void finish(const RouteAndPlan& p, const TailShape& shape, uint32_t ctas, uint32_t* memory,
                                       TailMemory& tail) {
  static_assert(kTokens <= kTailWarps, "a warp a token");
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int num_tokens = static_cast<int>(p.logits.num_tokens), top_k = static_cast<int>(p.route.top_k);
  const bool one_group = gridDim.y == 1;
  if (!arrives_last(p.arrivals + (one_group ? 0 : 1 + blockIdx.y), ctas)) return;
  const int token = static_cast<int>(blockIdx.y) * kTokens + warp;
  if (warp < kTokens && token < num_tokens) {
    route_held_token<kHeld, true>(p.route, token, lane, memory + warp * shape.words, tail.ids + warp * top_k);
  }
  if (!one_group && !arrives_last(p.arrivals, gridDim.y)) return;
  __syncthreads();  // all ids stand
  PlanRoutes plan = p.plan;
  if (one_group) plan.ids = tail.ids;
  if (one_group && num_tokens * top_k <= kWarp) {
    plan_tiny(plan, num_tokens * top_k);
  } else {
    plan_small(plan, int64_t{num_tokens} * top_k, shape.steps, shape.segments, tail.plan);
  }
}

inline bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

inline void check_route_and_plan(const RouteAndPlan& p) {
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
  QD_CHECK(on_16_bytes(l.weight) && on_16_bytes(p.plan.tiles), "weights and tiles on 16 bytes");
  QD_CHECK(p.arrivals != nullptr, "words to count arrivals in");
}

}  // namespace quadrille::kernels::cuda
