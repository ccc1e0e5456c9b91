// SPDX-License-Identifier: Apache-2.0
// Few tokens from their rows to the list of work in one launch. A CTA makes the logits of up to eight tokens and eight
// experts, whose rows of the weight it fetches before the kernel in front of it has ended; the last that arrives of
// those with the same tokens chooses their experts, the last of these plans. What is one CTA's work is latency alone: a
// launch of its own costs more than the work.
#include <cuda_pipeline.h>

#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/route_tail.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/bulk_copy.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kWarps = kTailWarps;
constexpr int kThreads = kWarps * kWarp;
constexpr int kExperts = kWarps;  // of a CTA: one a warp
static_assert(kRouteArrivals > kMostFusedTokens / 4, "a word for all, and one for each group of tokens");

// Rows of x in shared memory: two that are read at once lie 16 banks apart where k is a multiple of 64.
constexpr int64_t x_pitch(int64_t k) {
  return k + 32;
}
// First the experts' rows, then those of x; behind the logits: the words of the warps that route.
constexpr int64_t stage_bytes(int64_t k, int tokens) {
  return 2 * (kExperts * k + tokens * x_pitch(k));
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

template <int kTokens, int kHeld>
__global__ void __launch_bounds__(kThreads, 2)
    route_and_plan_kernel(const __grid_constant__ RouteAndPlan p, const __grid_constant__ TailShape shape) {
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
  finish<kTokens, kHeld>(p, shape, gridDim.x, reinterpret_cast<uint32_t*>(stage), tail);
}

template <int kTokens, int kHeld>
void launch(const RouteAndPlan& p, cudaStream_t stream) {
  const TailShape shape = tail_shape(p);
  const int64_t finish_bytes = kWarps * shape.words * static_cast<int64_t>(sizeof(uint32_t));
  const int64_t first_bytes = stage_bytes(p.logits.k, kTokens);
  const int64_t bytes = first_bytes > finish_bytes ? first_bytes : finish_bytes;
  const auto kernel = route_and_plan_kernel<kTokens, kHeld>;
  if (bytes > 16 * 1024) {
    QD_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)) ==
                 cudaSuccess,
             "shared memory of the router");
  }
  const dim3 grid(ceil_div(p.logits.num_experts, kExperts), ceil_div(p.logits.num_tokens, kTokens));
  launch_chained(kernel, grid, kThreads, static_cast<size_t>(bytes), stream, p, shape);
  check_launch("route_and_plan");
}

template <int kTokens>
void launch_held(const RouteAndPlan& p, cudaStream_t stream) {
  if (p.logits.num_experts <= 4 * kWarp) return launch<kTokens, 4>(p, stream);
  launch<kTokens, 16>(p, stream);
}

}  // namespace

void route_and_plan(const RouteAndPlan& p, device::Stream stream) {
  check_route_and_plan(p);
  QD_CHECK(on_16_bytes(p.logits.x), "rows of x on 16 bytes");
  // Eight rows of experts and four of x of 8,192 are 197 KB; eight of x do not fit.
  constexpr int64_t kWide = 6144;
  if (p.logits.num_tokens == 1) return launch_held<1>(p, native(stream));
  if (p.logits.num_tokens <= 4 || p.logits.k > kWide) return launch_held<4>(p, native(stream));
  launch_held<8>(p, native(stream));
}

}  // namespace quadrille::kernels::cuda
