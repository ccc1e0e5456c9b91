// SPDX-License-Identifier: Apache-2.0
// The fused projection of a token, head by head: norm, clip, rotary embedding; q to its rows, k and v into their page.
// A warp a head at a time, the head in shared memory between its steps; a block a token and eight heads of it, or all
// of them where there are tokens enough.
#include "core/check.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;

// The lane's chain of squares over x[width] in global memory.
__device__ __forceinline__ float row_scale(const uint16_t* x, int64_t width, float eps, int lane) {
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t i = lane; i < width; i += kLanes) {
    const float v = numerics::bf16_to_f32(__ldg(x + i));
    sum = __builtin_fmaf(v, v, sum);
  }
  return numerics::rms_scale(warp_tree_sum(sum), width, eps);
}

// NaN stays: both comparisons are false.
__device__ __forceinline__ float clipped(float x, float bound) {
  if (bound == 0.0f) return x;
  return x > bound ? bound : x < -bound ? -bound : x;
}

enum class HeadKind { kQuery, kKey, kValue };
struct Head {
  HeadKind kind;
  int64_t index;   // of its kind
  int64_t column;  // of the projection
};
__device__ __forceinline__ Head head_of(const DeviceQkv& p, int64_t i) {
  const int64_t kv = p.pages.num_kv_heads;
  const int64_t column = i * p.pages.head_dim;
  if (i < p.num_heads) return {HeadKind::kQuery, i, column};
  if (i < p.num_heads + kv) return {HeadKind::kKey, i - p.num_heads, column};
  return {HeadKind::kValue, i - p.num_heads - kv, column};
}

// The head's values after norm and clip, in shared memory. Ends with the warp in step.
__device__ __forceinline__ void load_head(const DeviceQkv& p, const uint16_t* x, const Head& head,
                                          const float* whole_scale, int lane, float* values) {
  const int64_t head_dim = p.pages.head_dim;
  const uint16_t* weight = nullptr;
  float scale = 1.0f;
  if (p.norm != HeadNorm::kNone && head.kind != HeadKind::kValue) {
    const bool is_query = head.kind == HeadKind::kQuery;
    weight = is_query ? p.q_norm : p.k_norm;
    if (p.norm == HeadNorm::kWholeProjection) {
      weight += head.index * head_dim;
      scale = is_query ? whole_scale[0] : whole_scale[1];
    } else {
      scale = row_scale(x + head.column, head_dim, p.eps, lane);
    }
  }
  for (int64_t i = lane; i < head_dim; i += kLanes) {
    float v = numerics::bf16_to_f32(__ldg(x + head.column + i));
    if (weight != nullptr) v = numerics::rms_norm_value(v, scale, numerics::bf16_to_f32(__ldg(weight + i)), true);
    values[i] = clipped(v, p.clip);
  }
  __syncwarp();
}

// Dimension i after the rotation.
__device__ __forceinline__ float rotated(const DeviceQkv& p, const float* values, int64_t position, int64_t i) {
  const int64_t half = p.rotary_dim / 2;
  if (i >= p.rotary_dim) return values[i];
  const int64_t angle = position * half + (i < half ? i : i - half);
  const float cos = __ldg(p.cos + angle), sin = __ldg(p.sin + angle);
  if (i < half) return numerics::rope_first(values[i], values[i + half], cos, sin, true);
  return numerics::rope_second(values[i - half], values[i], cos, sin, true);
}

__device__ __forceinline__ void store_head(const DeviceQkv& p, const Head& head, int64_t t, int64_t position,
                                           uint16_t* page, int lane, const float* values) {
  const int64_t head_dim = p.pages.head_dim;
  const layout::KvTile map{p.pages.num_kv_heads, head_dim};
  const int64_t place = position % layout::kPagePositions;
  const int64_t stored = head.kind == HeadKind::kQuery ? head_dim : map.padded_dim();
  for (int64_t i = lane; i < stored; i += kLanes) {
    float v = 0.0f;
    if (i < head_dim) v = head.kind == HeadKind::kValue ? values[i] : rotated(p, values, position, i);
    const uint16_t code = numerics::bf16_from_f32(v);
    if (head.kind == HeadKind::kQuery) {
      p.q[(t * p.num_heads + head.index) * head_dim + i] = code;
    } else if (head.kind == HeadKind::kKey) {
      page[map.key_offset(head.index, place, i)] = code;
    } else {
      page[map.value_offset(head.index, place, i)] = code;
    }
  }
}

__global__ void __launch_bounds__(kThreads) split_heads_kernel(const __grid_constant__ DeviceQkv p) {
  __shared__ float values[kWarps][layout::kMostTileDim];
  __shared__ float scales[2];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t t = blockIdx.x;
  const int64_t position = p.position[t];
  if (position < 0) return;
  const uint16_t* x = p.qkv + t * p.qkv_pitch;
  if (p.norm == HeadNorm::kWholeProjection) {
    if (warp < 2) {
      const uint16_t* whole = warp == 0 ? p.whole_q : p.whole_k;
      int64_t width = warp == 0 ? p.whole_q_width : p.whole_k_width;
      if (whole == nullptr) {
        whole = warp == 0 ? x : x + p.num_heads * p.pages.head_dim;
        width = (warp == 0 ? p.num_heads : p.pages.num_kv_heads) * p.pages.head_dim;
      } else {
        whole += t * width;
      }
      const float scale = row_scale(whole, width, p.eps, lane);
      if (lane == 0) scales[warp] = scale;
    }
    __syncthreads();  // both scales stand
  }
  const int64_t entry = p.sequence[t] * p.pages.table_stride + position / layout::kPagePositions;
  const layout::KvTile map{p.pages.num_kv_heads, p.pages.head_dim};
  uint16_t* page = p.pages.data + p.pages.table[entry] * map.page_size();
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kWarps + warp;
  for (int64_t i = first; i < p.num_heads + 2 * p.pages.num_kv_heads; i += static_cast<int64_t>(gridDim.y) * kWarps) {
    const Head head = head_of(p, i);
    load_head(p, x, head, scales, lane, values[warp]);
    store_head(p, head, t, position, page, lane, values[warp]);
    __syncwarp();  // the head has been read
  }
}

}  // namespace

void split_heads(const DeviceQkv& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX, "tokens of the step");
  QD_CHECK(p.num_heads >= 0 && p.pages.num_kv_heads >= 1, "heads of the projection");
  QD_CHECK(p.pages.head_dim % 8 == 0 && layout::padded_head_dim(p.pages.head_dim) != 0,
           "a head of a multiple of 8 dimensions, at most 256");
  QD_CHECK(p.rotary_dim >= 0 && p.rotary_dim <= p.pages.head_dim && p.rotary_dim % 2 == 0, "rotated dimensions");
  QD_CHECK(p.norm == HeadNorm::kNone || (p.q_norm != nullptr && p.k_norm != nullptr), "weights of the norm");
  QD_CHECK(p.qkv_pitch >= (p.num_heads + 2 * p.pages.num_kv_heads) * p.pages.head_dim, "a pitch that holds the row");
  QD_CHECK(p.clip >= 0, "a clip of 0 (none) or above");
  if (p.num_tokens == 0) return;
  // One block a token walks Qwen3-30B-A3B's 40 heads five deep: 25 us at one token (ncu, base clocks).
  constexpr int64_t kEnoughTokens = 512;
  const int64_t parts = p.num_tokens >= kEnoughTokens ? 1 : ceil_div(p.num_heads + 2 * p.pages.num_kv_heads, kWarps);
  const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(parts));
  split_heads_kernel<<<grid, kThreads, 0, native(stream)>>>(p);
  check_launch("split_heads");
}

}  // namespace quadrille::kernels::cuda
