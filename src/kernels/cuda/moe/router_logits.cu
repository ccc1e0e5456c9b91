// SPDX-License-Identifier: Apache-2.0
// Router logits and shared-expert gates: lane l of a warp owns lane l of numerics/lane_sum.h, an fma chain over the
// elements l, l + 32, ... Few dot products: a warp each. Many: a warp holds a tile of tokens and experts, so that an
// element is loaded once for the whole tile; x lies in shared memory, eight tokens of a column side by side.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/bf16.h"
#include "numerics/silu.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kSlab = 512;       // columns of x in shared memory at a time
constexpr int kTokensAWord = 8;  // tokens of a 16-byte word in shared memory

__device__ __forceinline__ float finished(const DeviceRouterLogits& p, float lane_value) {
  const float logit = numerics::canonical(warp_tree_sum(lane_value));
  return p.sigmoid ? numerics::sigmoid(logit) : logit;
}

__global__ void __launch_bounds__(kThreads) pair_kernel(DeviceRouterLogits p) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  const int64_t pairs = p.num_tokens * p.num_experts;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes; pair < pairs; pair += stride) {
    const uint16_t* x = p.x + pair / p.num_experts * p.k;
    const uint16_t* w = p.weight + pair % p.num_experts * p.k;
    float sum = 0.0f;
#pragma unroll 32
    for (int64_t i = lane; i < p.k; i += kLanes) {
      sum = __builtin_fmaf(numerics::bf16_to_f32(__ldg(x + i)), numerics::bf16_to_f32(__ldg(w + i)), sum);
    }
    const float logit = finished(p, sum);
    if (lane == 0) p.logits[pair] = logit;
  }
}

// x_slab[plane][column]: column `first + column` of tokens [8 * plane, 8 * plane + 8) of the tile, 0 behind the last.
template <int kTokens>
__device__ __forceinline__ void load_slab(const DeviceRouterLogits& p, int64_t first_token, int64_t first, int columns,
                                          uint4 (*x_slab)[kSlab]) {
  for (int i = static_cast<int>(threadIdx.x); i < kTokens / kTokensAWord * kSlab; i += kThreads) {
    const int plane = i / kSlab;
    const int column = i % kSlab;
    if (column >= columns) continue;
    const int64_t token = first_token + plane * kTokensAWord;
    const uint16_t* x = p.x + token * p.k + first + column;
    uint32_t word[kTokensAWord / 2];
#pragma unroll
    for (int j = 0; j < kTokensAWord / 2; ++j) {
      const uint32_t low = token + 2 * j < p.num_tokens ? __ldg(x + 2 * j * p.k) : 0u;
      const uint32_t high = token + 2 * j + 1 < p.num_tokens ? __ldg(x + (2 * j + 1) * p.k) : 0u;
      word[j] = low | high << 16;
    }
    x_slab[plane][column] = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

template <int kTokens, int kExperts>
struct LogitTile {
  float sum[kTokens][kExperts];

  // One element of the lane for every token and expert of the tile. w[e] is at the element already.
  __device__ __forceinline__ void step(const uint4 (*x_slab)[kSlab], int column, const float (&w)[kExperts]) {
#pragma unroll
    for (int plane = 0; plane < kTokens / kTokensAWord; ++plane) {
      const uint4 x = x_slab[plane][column];
      const uint32_t word[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = plane * kTokensAWord + 2 * j;
        const float low = numerics::float_of(word[j] << 16);
        const float high = numerics::float_of(word[j] & 0xffff0000u);
#pragma unroll
        for (int e = 0; e < kExperts; ++e) {
          sum[token][e] = __builtin_fmaf(low, w[e], sum[token][e]);
          sum[token + 1][e] = __builtin_fmaf(high, w[e], sum[token + 1][e]);
        }
      }
    }
  }
};

template <int kTokens, int kExperts>
__global__ void __launch_bounds__(kThreads) tile_kernel(DeviceRouterLogits p) {
  __shared__ uint4 x_slab[kTokens / kTokensAWord][kSlab];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTokens;
  const int64_t first_expert = (static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.x / kLanes) * kExperts;
  const uint16_t* weight[kExperts];
#pragma unroll
  for (int e = 0; e < kExperts; ++e) {
    const int64_t expert = first_expert + e < p.num_experts ? first_expert + e : p.num_experts - 1;
    weight[e] = p.weight + expert * p.k + lane;
  }
  LogitTile<kTokens, kExperts> tile = {};
  for (int64_t first = 0; first < p.k; first += kSlab) {
    const int columns = static_cast<int>(p.k - first < kSlab ? p.k - first : kSlab);
    __syncthreads();  // the slab before is read
    load_slab<kTokens>(p, first_token, first, columns, x_slab);
    __syncthreads();  // the slab stands
    if (first_expert >= p.num_experts) continue;
#pragma unroll 4
    for (int column = lane; column < columns; column += kLanes) {
      float w[kExperts];
#pragma unroll
      for (int e = 0; e < kExperts; ++e) w[e] = numerics::bf16_to_f32(__ldg(weight[e] + first + column - lane));
      tile.step(x_slab, column, w);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
      const float logit = finished(p, tile.sum[t][e]);
      const bool exists = first_token + t < p.num_tokens && first_expert + e < p.num_experts;
      if (exists && lane == (t * kExperts + e) % kLanes) {
        p.logits[(first_token + t) * p.num_experts + first_expert + e] = logit;
      }
    }
  }
}

template <int kTokens, int kExperts>
void launch_tiles(const DeviceRouterLogits& p, cudaStream_t stream) {
  const dim3 grid(ceil_div(p.num_tokens, kTokens), ceil_div(p.num_experts, kWarps * kExperts));
  tile_kernel<kTokens, kExperts><<<grid, kThreads, 0, stream>>>(p);
  check_launch("router_logits, tiles");
}

}  // namespace

void router_logits(const DeviceRouterLogits& p, device::Stream stream) {
  constexpr int64_t kFewTokens = 8, kFewExperts = 4, kManyTokens = 1024;
  constexpr int64_t kMostBlocks = 1 << 20;
  QD_CHECK(p.num_tokens >= 0 && p.num_experts >= 1 && p.k >= 1, "shapes of the router's product");
  if (p.num_tokens == 0) return;
  const bool fits = ceil_div(p.num_experts, kWarps) <= 65535;
  if (p.num_tokens <= kFewTokens || p.num_experts <= kFewExperts || !fits) {
    const int64_t blocks = (p.num_tokens * p.num_experts + kWarps - 1) / kWarps;
    pair_kernel<<<static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kThreads, 0, native(stream)>>>(p);
    return check_launch("router_logits, pairs");
  }
  if (p.num_tokens < kManyTokens) return launch_tiles<8, 1>(p, native(stream));
  launch_tiles<16, 4>(p, native(stream));
}

}  // namespace quadrille::kernels::cuda
