// SPDX-License-Identifier: Apache-2.0
// One to four tokens from their residual rows to the list of work in one launch. Every CTA makes the normed rows for
// itself, which costs less than to wait for a kernel that makes them once; then half a warp has an expert and a token,
// and one CTA more writes the rows out, takes the logits, chooses and plans.
#include "core/check.h"
#include "kernels/api/route_words.h"
#include "kernels/cuda/decoder/norm_row.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/choose_in_block.cuh"
#include "kernels/cuda/moe/route_tail.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kWarps = kTailWarps;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostTokens = static_cast<int>(kMostNormedTokens);

// Rows in shared memory: those of half warps that read at once lie 16 banks apart where k is a multiple of 64.
constexpr int row_pitch(int k) {
  return k + 32;
}
// Of a CTA, so that no half warp has two pairs. Four and two were measured no faster at one and two tokens.
constexpr int experts_of(int64_t tokens) {
  return tokens <= 2 ? 8 : 4;
}
static_assert(kMostTokens < kWarps && 2 * experts_of(2) <= 2 * kWarps &&
              kMostTokens * experts_of(kMostTokens) <= 2 * kWarps);

// The experts' rows, those of the tokens, their updates, the weight of the norm.
constexpr int64_t stage_bytes(int64_t k, int64_t tokens) {
  return 2 * ((experts_of(tokens) + 2 * tokens) * row_pitch(static_cast<int>(k)) + k);
}

struct NormMemory {
  float scale[kMostTokens];
  uint32_t absmax[kMostTokens][kNormLanes];
};

// One thread: rows that no kernel writes.
__device__ __forceinline__ void fetch_weights(const DeviceNormAndRoute& p, int first_expert, int experts,
                                              uint16_t* expert_rows, uint16_t* norm_weight, uint32_t barrier) {
  const int k = static_cast<int>(p.norm.width);
  const auto bytes = static_cast<uint32_t>(2 * k);
  ptx::barrier_init(barrier, 1);
  ptx::fence_barrier_init();
  ptx::barrier_expect(barrier, bytes * static_cast<uint32_t>(experts + 1));
  ptx::bulk_copy(ptx::shared_address(norm_weight), p.norm.weight, bytes, barrier);
#pragma unroll 1
  for (int e = 0; e < experts; ++e) {
    ptx::bulk_copy(ptx::shared_address(expert_rows + e * row_pitch(k)),
                   p.route.logits.weight + static_cast<int64_t>(first_expert + e) * k, bytes, barrier);
  }
}

struct Rows {
  uint16_t* x;       // the tokens' sums, then their norms
  uint16_t* update;  // as much room
  const uint16_t* norm_weight;
  uint32_t weights_stand;
};

// The tokens' rows in shared memory; `writes`: to global memory as well.
__device__ __forceinline__ void make_rows(const DeviceAddNorm& p, bool writes, const Rows& rows, NormMemory& memory) {
  const int tokens = static_cast<int>(p.num_rows), k = static_cast<int>(p.width), vectors = k / kVectorColumns;
  const int own = static_cast<int>(threadIdx.x), warp = own / kWarp;
  const auto vector_of = [&](int t, int i) { return reinterpret_cast<uint4*>(rows.x + t * row_pitch(k)) + i; };
  const auto update_of = [&](int t, int i) { return reinterpret_cast<uint4*>(rows.update + t * row_pitch(k)) + i; };
  const auto each = [&](const auto& step) {
#pragma unroll 1
    for (int t = 0; t < tokens; ++t) {
#pragma unroll 1
      for (int i = own; i < vectors; i += kThreads) step(t, i, int64_t{t} * vectors + i);
    }
  };
  const auto fetch = [&](const uint4* to, const uint16_t* from, int64_t place) {
    ptx::copy16_async(ptx::shared_address(to), reinterpret_cast<const uint4*>(from) + place, true);
  };
  // All in flight, whatever their number; each thread goes on with what it has copied itself.
  each([&](int t, int i, int64_t place) {
    fetch(vector_of(t, i), p.x, place);
    if (p.update != nullptr) fetch(update_of(t, i), p.update, place);
  });
  ptx::copies_commit();
  ptx::copies_wait<0>();
  if (p.update != nullptr) {
    each([&](int t, int i, int64_t place) {
      const uint4 x = sum_of(*vector_of(t, i), *update_of(t, i));
      *vector_of(t, i) = x;
      if (writes) reinterpret_cast<uint4*>(p.x_out)[place] = x;
    });
  }
  __syncthreads();  // the sums stand
  if (warp < tokens) {
    const int lane = own % kWarp;
    const float sum = warp_tree_sum(squares_of_lane(rows.x + warp * row_pitch(k), k, lane));
    if (lane == 0) memory.scale[warp] = numerics::rms_scale(sum, k, p.eps);
  }
  __syncthreads();                           // the scales stand
  ptx::barrier_wait(rows.weights_stand, 0);  // pairs with fetch_weights()
#pragma unroll 1
  for (int t = 0; t < tokens; ++t) {
    const float scale = memory.scale[t];
    float absmax = 0.0f;
#pragma unroll 1
    for (int i = own; i < vectors; i += kThreads) {
      uint4 x = *vector_of(t, i);
      absmax = normalised(x, reinterpret_cast<const uint4*>(rows.norm_weight)[i], scale, absmax);
      *vector_of(t, i) = x;
      if (writes && p.normed != nullptr) reinterpret_cast<uint4*>(p.normed + int64_t{t} * k)[i] = x;
    }
    if (!writes || p.act == nullptr) continue;
    const float act_scale = scale_of_block(absmax, memory.absmax[t]);
    if (own == 0) p.act_scale[t] = act_scale;
    const Divisor divisor = divisor_of(act_scale);
    uint2* const codes = reinterpret_cast<uint2*>(p.act + t * p.act_pitch);
#pragma unroll 1
    for (int i = own; i < p.act_pitch / kVectorColumns; i += kThreads) {
      float x[8] = {};
      if (i < vectors) unpack(*vector_of(t, i), x);
      codes[i] = e4m3_codes(x, divisor);
    }
  }
}

// The dot product of half a warp, in all its lanes: a thread has two neighbouring lanes of the 32-lane sum.
__device__ __forceinline__ float dot_of_half(const uint16_t* x, const uint16_t* w, int k, int lane) {
  constexpr int kHalf = kWarp / 2;
  const uint32_t* const x_words = reinterpret_cast<const uint32_t*>(x);
  const uint32_t* const w_words = reinterpret_cast<const uint32_t*>(w);
  float low = 0.0f, high = 0.0f;
  const auto step = [&](uint32_t of_x, uint32_t of_w) {
    low = __builtin_fmaf(numerics::float_of(of_x << 16), numerics::float_of(of_w << 16), low);
    high = __builtin_fmaf(numerics::float_of(of_x & 0xffff0000u), numerics::float_of(of_w & 0xffff0000u), high);
  };
  constexpr int kBatch = 16;
  int i = lane % kHalf;
#pragma unroll 1
  for (; i + (kBatch - 1) * kHalf < k / 2; i += kBatch * kHalf) {
    uint32_t of_x[kBatch], of_w[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      of_x[j] = x_words[i + j * kHalf];
      of_w[j] = w_words[i + j * kHalf];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) step(of_x[j], of_w[j]);
  }
#pragma unroll 1
  for (; i < k / 2; i += kHalf) step(x_words[i], w_words[i]);
#pragma unroll
  for (int distance = kHalf / 2; distance > 0; distance /= 2) {  // lanes of the sum 16, 8, 4, 2 apart
    low = low + __shfl_xor_sync(kWholeWarp, low, distance);
    high = high + __shfl_xor_sync(kWholeWarp, high, distance);
  }
  return numerics::canonical(low + high);
}

// A logit goes to the CTA that chooses as a word that is 0 before and behind the launch: no logit has all bits set, NaN
// being canonical. The word is its own flag, so nobody fences, counts or reads again: half a microsecond.
__device__ __forceinline__ void send(uint32_t* word, float logit) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(~numerics::bits_of(logit)) : "memory");
}
// Waits for CTAs that wait for nobody but the predecessor.
__device__ __forceinline__ float receive(uint32_t* word) {
  uint32_t found = 0;
  while (found == 0) asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(word) : "memory");
  *word = 0;  // for the next launch
  return numerics::float_of(~found);
}

// The choice and the plan, by all threads of the block.
__device__ __forceinline__ void finish_few(const RouteAndPlan& p, ChoiceMemory& choice) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto tokens = static_cast<int>(p.route.num_tokens);
  BlockChoice(p.route, kThreads, choice).run([&](int place) { return receive(p.arrivals + kRouteArrivals + place); });
  __syncthreads();  // ids and scores stand
  PlanRoutes plan = p.plan;
  plan.ids = choice.id;
  const int num_routes = tokens * static_cast<int>(plan.top_k);
  if (warp == 0) return plan_few(plan, num_routes, lane);
  if (warp <= tokens) return weigh_choice(p.route, warp - 1, lane, choice);
  offsets_of_few(plan, num_routes, lane, tokens + 1);
}

__global__ void __launch_bounds__(kThreads, 1) norm_and_route_kernel(const __grid_constant__ DeviceNormAndRoute p) {
  extern __shared__ __align__(16) uint4 stage[];
  __shared__ __align__(8) uint64_t weights_stand;
  __shared__ NormMemory norm;
  __shared__ ChoiceMemory choice;
  const DeviceRouterLogits& logits = p.route.logits;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int tokens = static_cast<int>(logits.num_tokens), k = static_cast<int>(logits.k);
  const int all = static_cast<int>(logits.num_experts);
  const int most = experts_of(tokens), first = static_cast<int>(blockIdx.x) * most;
  const bool writes = first >= all;  // the last CTA has no experts
  const int experts = writes ? 0 : min(most, all - first);
  uint16_t* const w_rows = reinterpret_cast<uint16_t*>(stage);
  uint16_t* const x_rows = w_rows + most * row_pitch(k);
  uint16_t* const updates = x_rows + tokens * row_pitch(k);
  uint16_t* const norm_weight = updates + tokens * row_pitch(k);
  const uint32_t barrier = ptx::shared_address(&weights_stand);
  if (threadIdx.x == 0) fetch_weights(p, first, experts, w_rows, norm_weight, barrier);
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  make_rows(p.norm, writes, {x_rows, updates, norm_weight, barrier}, norm);
  if (writes) return finish_few(p.route, choice);
  __syncthreads();  // the normed rows stand
  const int half = 2 * warp + lane / 16, expert = half % most, token = half / most;
  if (2 * warp >= most * tokens) return;  // whole warps
  const float logit = dot_of_half(x_rows + token * row_pitch(k), w_rows + expert * row_pitch(k), k, lane);
  if (lane % 16 != 0 || expert >= experts) return;
  const int place = token * all + first + expert;
  logits.logits[place] = logit;
  send(p.route.arrivals + kRouteArrivals + place, logit);
}

void check_problem(const DeviceNormAndRoute& p) {
  const DeviceAddNorm& norm = p.norm;
  const DeviceRouterLogits& logits = p.route.logits;
  check_route_and_plan(p.route);
  QD_CHECK(fits_norm_and_route(logits.num_tokens, p.route.route, logits.k),
           "a problem that fits_norm_and_route() lets pass");
  QD_CHECK(norm.num_rows == logits.num_tokens && norm.width == logits.k, "the norm of the router's rows");
  QD_CHECK(norm.rows == nullptr && norm.update_f32 == nullptr && norm.combine.rows == nullptr, "a bf16 update at most");
  QD_CHECK((norm.update != nullptr) == (norm.x_out != nullptr) && norm.x_out != norm.x && norm.weight != nullptr,
           "sums that go elsewhere, and a norm");
  QD_CHECK(on_16_bytes(norm.x) && on_16_bytes(norm.x_out) && on_16_bytes(norm.update) && on_16_bytes(norm.weight) &&
               on_16_bytes(norm.normed) && on_16_bytes(norm.act),
           "rows on 16 bytes");
  QD_CHECK(norm.act == nullptr || (norm.act_pitch >= norm.width && norm.act_pitch % 16 == 0),
           "a pitch that holds the codes");
}

}  // namespace

void norm_and_route(const DeviceNormAndRoute& p, device::Stream stream) {
  check_problem(p);
  const DeviceRouterLogits& logits = p.route.logits;
  const int64_t bytes = stage_bytes(logits.k, logits.num_tokens);
  QD_CHECK(cudaFuncSetAttribute(norm_and_route_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(bytes)) == cudaSuccess,
           "shared memory of the router");
  const int grid = ceil_div(logits.num_experts, experts_of(logits.num_tokens)) + 1;
  launch_chained(norm_and_route_kernel, grid, kThreads, static_cast<size_t>(bytes), native(stream), p);
  check_launch("norm_and_route");
}

}  // namespace quadrille::kernels::cuda
