// SPDX-License-Identifier: Apache-2.0
// The fused projection of a token, head by head: norm, clip, rotary embedding; q to its rows, k and v into their page.
// 16 lanes a head of up to 128 dimensions (else 32), a vector of eight dimensions a lane; the head passes through
// shared memory where lanes need each other's values. A block a token and eight heads of it (four of the wide), or all
// of them where there are tokens enough: angles, page and weights are fetched once.
#include "core/check.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kThreads = 128;
constexpr int kVector = kVectorColumns;

__device__ __forceinline__ float low_value(uint32_t word) {
  return numerics::float_of(word << 16);
}
__device__ __forceinline__ float high_value(uint32_t word) {
  return numerics::float_of(word & 0xffff0000u);
}
__device__ __forceinline__ uint32_t word_at(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// NaN stays: both comparisons are false.
__device__ __forceinline__ float clipped(float x, float bound) {
  return x > bound ? bound : x < -bound ? -bound : x;
}

enum class HeadKind { kQuery, kKey, kValue };
struct Head {
  HeadKind kind;
  int index;  // of its kind
};
__device__ __forceinline__ Head head_of(const DeviceQkv& p, int i) {
  const int queries = static_cast<int>(p.num_heads), kv = static_cast<int>(p.pages.num_kv_heads);
  if (i < queries) return {HeadKind::kQuery, i};
  if (i < queries + kv) return {HeadKind::kKey, i - queries};
  return {HeadKind::kValue, i - queries - kv};
}
__device__ __forceinline__ bool has_norm(const DeviceQkv& p, const Head& head) {
  return p.norm != HeadNorm::kNone && head.kind != HeadKind::kValue;
}
// The lane's weights of the norm.
__device__ __forceinline__ uint4 norm_weights(const DeviceQkv& p, const Head& head, int vec) {
  if (!has_norm(p, head) || vec * kVector >= p.pages.head_dim) return make_uint4(0, 0, 0, 0);
  const uint16_t* weight = head.kind == HeadKind::kQuery ? p.q_norm : p.k_norm;
  if (p.norm == HeadNorm::kWholeProjection) weight += head.index * p.pages.head_dim;
  return __ldg(reinterpret_cast<const uint4*>(weight) + vec);
}

// --- Sums of squares, in the order of numerics/lane_sum.h ---

// Of x[width] in global memory, by one warp through its `buffer` of 256 values.
__device__ __forceinline__ float whole_squares(const uint16_t* x, int64_t width, int lane, uint4* buffer) {
  constexpr int kHeld = 8;
  const uint4* vectors = reinterpret_cast<const uint4*>(x);
  const uint16_t* values = reinterpret_cast<const uint16_t*>(buffer);
  const int64_t count = width / kVector;
  float sum = 0.0f;
  for (int64_t base = 0; base < count; base += kHeld * kLanes) {
    uint4 held[kHeld];
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int64_t i = base + h * kLanes + lane;
      held[h] = i < count ? vectors[i] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int64_t left = width - (base + h * kLanes) * kVector;  // may be below 0
      buffer[lane] = held[h];
      __syncwarp();  // 256 values stand
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (lane + j * kLanes >= left) break;
        const float v = numerics::bf16_to_f32(values[lane + j * kLanes]);
        sum = __builtin_fmaf(v, v, sum);
      }
      __syncwarp();  // they have been read
    }
  }
  return warp_tree_sum(sum);
}

// Of the head in `row`, by its lanes; those of 16 have two chains each.
template <int Lanes>
__device__ __forceinline__ float head_squares(const uint4* row, int head_dim, int vec) {
  if constexpr (Lanes == kLanes) {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(row);
    float sum = 0.0f;
#pragma unroll 4
    for (int i = vec; i < head_dim; i += kLanes) {
      const float v = numerics::bf16_to_f32(values[i]);
      sum = __builtin_fmaf(v, v, sum);
    }
    return warp_tree_sum(sum);
  } else {
    static_assert(Lanes == kLanes / 2);
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(row);
    float even = 0.0f, odd = 0.0f;
#pragma unroll 4
    for (int i = vec; i < head_dim / 2; i += Lanes) {
      const float low = low_value(pairs[i]), high = high_value(pairs[i]);
      even = __builtin_fmaf(low, low, even);
      odd = __builtin_fmaf(high, high, odd);
    }
#pragma unroll
    for (int distance = Lanes / 2; distance > 0; distance /= 2) {
      even = even + __shfl_xor_sync(kWholeWarp, even, distance);
      odd = odd + __shfl_xor_sync(kWholeWarp, odd, distance);
    }
    return even + odd;
  }
}

// --- Rotary embedding ---

// Of the lane's eight dimensions. By vector: half the rotated dimensions are a multiple of eight, and the rows of the
// tables lie on 16 bytes.
struct Rotation {
  float cos[kVector];
  float sin[kVector];  // by vector: negated in the first half
};
__device__ __forceinline__ void load_four(const float* from, float* to) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}
template <bool ByVector>
__device__ __forceinline__ void load_rotation(const DeviceQkv& p, int64_t position, int vec, Rotation& r) {
  const int half = static_cast<int>(p.rotary_dim) / 2;
  const int first = vec * kVector;
  const float* cos = p.cos + position * half;
  const float* sin = p.sin + position * half;
  if constexpr (ByVector) {
    if (first >= 2 * half) return;
    const int angle = first < half ? first : first - half;
#pragma unroll
    for (int j = 0; j < kVector; j += 4) {
      load_four(cos + angle + j, r.cos + j);
      load_four(sin + angle + j, r.sin + j);
    }
    if (first >= half) return;
#pragma unroll
    for (int j = 0; j < kVector; ++j) r.sin[j] = -r.sin[j];
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int i = first + j;
      if (i >= 2 * half) continue;
      r.cos[j] = __ldg(cos + (i < half ? i : i - half));
      r.sin[j] = __ldg(sin + (i < half ? i : i - half));
    }
  }
}

// The lane's values of the head in `row` after the rotation, rounded. rope_first is own * cos - other * sin,
// rope_second own * cos + other * sin: each product rounded, then the sum; a negated factor negates a rounded product.
template <bool ByVector>
__device__ __forceinline__ uint4 rotated(const DeviceQkv& p, const Rotation& r, const uint4* row, int vec,
                                         const uint4& own) {
  const int half = static_cast<int>(p.rotary_dim) / 2;
  const int first = vec * kVector;
  float x[kVector];
  unpack(own, x);
  if constexpr (ByVector) {
    if (first < 2 * half) {
      float y[kVector];
      unpack(row[first < half ? vec + half / kVector : vec - half / kVector], y);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = x[j] * r.cos[j] + y[j] * r.sin[j];
    }
  } else {
    const uint16_t* values = reinterpret_cast<const uint16_t*>(row);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int i = first + j;
      if (i >= 2 * half) continue;
      const float y = numerics::bf16_to_f32(values[i < half ? i + half : i - half]);
      x[j] = i < half ? numerics::rope_first(x[j], y, r.cos[j], r.sin[j], true)
                      : numerics::rope_second(y, x[j], r.cos[j], r.sin[j], true);
    }
  }
  return make_uint4(ptx::bf16_pair(x[0], x[1]), ptx::bf16_pair(x[2], x[3]), ptx::bf16_pair(x[4], x[5]),
                    ptx::bf16_pair(x[6], x[7]));
}

// --- Norm and clip ---

// rms_norm_value of two values.
__device__ __forceinline__ uint32_t normed_pair(uint32_t x, float scale, uint32_t weight) {
  const uint32_t scaled = ptx::bf16_pair(low_value(x) * scale, high_value(x) * scale);
  return ptx::bf16_pair(low_value(scaled) * low_value(weight), high_value(scaled) * high_value(weight));
}
__device__ __forceinline__ uint4 normed(const uint4& x, float scale, const uint4& weight) {
  return make_uint4(normed_pair(x.x, scale, weight.x), normed_pair(x.y, scale, weight.y),
                    normed_pair(x.z, scale, weight.z), normed_pair(x.w, scale, weight.w));
}
__device__ __forceinline__ uint32_t clipped_pair(uint32_t x, float bound) {
  return ptx::bf16_pair(clipped(low_value(x), bound), clipped(high_value(x), bound));
}

// --- Where heads go ---

// The lane's vector of head 0 in q, and in the token's place of the page.
struct Places {
  uint16_t* query;
  uint16_t* page;
  int64_t key, value;  // elements of the page
  int64_t tile_size;

  __device__ __forceinline__ Places(const DeviceQkv& p, int64_t t, int64_t position, int32_t page_id, int vec) {
    const layout::KvTile map{p.pages.num_kv_heads, p.pages.head_dim};
    const int64_t place = position % layout::kPagePositions;
    page = p.pages.data + page_id * map.page_size();
    query = p.q + t * p.num_heads * p.pages.head_dim + vec * kVector;
    key = map.key_offset(0, place, vec * kVector);
    value = map.value_offset(0, place, vec * kVector);
    tile_size = map.tile_size();
  }
  __device__ __forceinline__ void store(const Head& head, int64_t head_dim, const uint4& v) const {
    if (head.kind == HeadKind::kQuery) {
      *reinterpret_cast<uint4*>(query + head.index * head_dim) = v;
    } else if (head.kind == HeadKind::kKey) {
      // A word in each of the four pieces of the row (layout/kv_tile.h).
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        *reinterpret_cast<uint32_t*>(page + ((key + head.index * tile_size) ^ (8 * i))) = word_at(v, i);
      }
    } else {
      *reinterpret_cast<uint4*>(page + value + head.index * tile_size) = v;
    }
  }
};

// Scales of the norm over all of q ([0]) and of k ([1]), by two warps. Ends with the block in step.
__device__ __forceinline__ void find_whole_scales(const DeviceQkv& p, const uint16_t* x, int64_t t, uint4* buffers,
                                                  float* scales) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  if (warp < 2) {
    const uint16_t* whole = warp == 0 ? p.whole_q : p.whole_k;
    int64_t width = warp == 0 ? p.whole_q_width : p.whole_k_width;
    if (whole == nullptr) {
      whole = warp == 0 ? x : x + p.num_heads * p.pages.head_dim;
      width = (warp == 0 ? p.num_heads : p.pages.num_kv_heads) * p.pages.head_dim;
    } else {
      whole += t * width;
    }
    const float sum = whole_squares(whole, width, lane, buffers + warp * kLanes);
    if (lane == 0) scales[warp] = numerics::rms_scale(sum, width, p.eps);
  }
  __syncthreads();  // both scales stand
}

template <int Lanes, bool ByVector>
__global__ void __launch_bounds__(kThreads) split_heads_kernel(const __grid_constant__ DeviceQkv p) {
  constexpr int kGroups = kThreads / Lanes;
  __shared__ uint4 rows[kThreads];
  __shared__ float scales[2];
  const int vec = static_cast<int>(threadIdx.x) % Lanes;
  const int group = static_cast<int>(threadIdx.x) / Lanes;
  uint4* const row = rows + group * Lanes;
  const int64_t t = blockIdx.x;
  const int head_dim = static_cast<int>(p.pages.head_dim);
  const int num_heads = static_cast<int>(p.num_heads + 2 * p.pages.num_kv_heads);
  const int step = static_cast<int>(gridDim.y) * kGroups;
  const int64_t position = p.position[t];
  if (position < 0) {
    ptx::wait_for_predecessor();
    ptx::let_successor_start();
    return;
  }
  // Lists, tables and weights are older than the projection: they come while it still runs.
  const int32_t page = p.pages.table[p.sequence[t] * p.pages.table_stride + position / layout::kPagePositions];
  Rotation rotation;
  if (p.rotary_dim > 0) load_rotation<ByVector>(p, position, vec, rotation);
  const Places places(p, t, position, page, vec);
  const bool holds = vec * kVector < head_dim;
  const bool is_stored = vec * kVector < layout::padded_head_dim(head_dim);
  int i = static_cast<int>(blockIdx.y) * kGroups + group;
  Head head = head_of(p, i);
  const uint4 none = make_uint4(0, 0, 0, 0);
  uint4 weight = i < num_heads ? norm_weights(p, head, vec) : none;
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const uint16_t* x = p.qkv + t * p.qkv_pitch;
  const auto load = [&](int head_at) {
    return holds && head_at < num_heads ? *reinterpret_cast<const uint4*>(x + head_at * head_dim + vec * kVector) : none;
  };
  uint4 v = load(i);
  if (p.norm == HeadNorm::kWholeProjection) find_whole_scales(p, x, t, rows, scales);
  for (int base = static_cast<int>(blockIdx.y) * kGroups; base < num_heads; base += step) {
    const Head now = head;
    const bool is_head = i < num_heads;
    uint4 own = v;
    const uint4 own_weight = weight;
    i += step;
    v = load(i);
    if (i < num_heads) {
      head = head_of(p, i);
      weight = norm_weights(p, head, vec);
    }
    if (p.norm == HeadNorm::kPerHead) {
      row[vec] = own;
      __syncwarp();  // the heads of the warp stand
      const float scale = numerics::rms_scale(head_squares<Lanes>(row, head_dim, vec), head_dim, p.eps);
      if (has_norm(p, now)) own = normed(own, scale, own_weight);
      __syncwarp();  // they have been read
    } else if (has_norm(p, now)) {
      own = normed(own, now.kind == HeadKind::kQuery ? scales[0] : scales[1], own_weight);
    }
    if (p.clip != 0.0f) {
      own = make_uint4(clipped_pair(own.x, p.clip), clipped_pair(own.y, p.clip), clipped_pair(own.z, p.clip),
                       clipped_pair(own.w, p.clip));
    }
    row[vec] = own;
    __syncwarp();  // the heads stand again
    // Values are not rotated, but a NaN of theirs gets its one face, too.
    uint4 result;
    if (now.kind == HeadKind::kValue || p.rotary_dim == 0) {
      float plain[kVector];
      unpack(own, plain);
      result = make_uint4(ptx::bf16_pair(plain[0], plain[1]), ptx::bf16_pair(plain[2], plain[3]),
                          ptx::bf16_pair(plain[4], plain[5]), ptx::bf16_pair(plain[6], plain[7]));
    } else {
      result = rotated<ByVector>(p, rotation, row, vec, own);
    }
    __syncwarp();  // they have been read
    if (is_head && (now.kind == HeadKind::kQuery ? holds : is_stored)) places.store(now, head_dim, result);
  }
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

using SplitKernel = void (*)(DeviceQkv);

}  // namespace

void split_heads(const DeviceQkv& p, device::Stream stream) {
  const int64_t num_heads = p.num_heads + 2 * p.pages.num_kv_heads;
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX, "tokens of the step");
  QD_CHECK(p.num_heads >= 0 && p.pages.num_kv_heads >= 1 && num_heads <= (1 << 20), "heads of the projection");
  QD_CHECK(p.pages.head_dim % 8 == 0 && layout::padded_head_dim(p.pages.head_dim) != 0,
           "a head of a multiple of 8 dimensions, at most 256");
  QD_CHECK(p.rotary_dim >= 0 && p.rotary_dim <= p.pages.head_dim && p.rotary_dim % 2 == 0, "rotated dimensions");
  QD_CHECK(p.norm == HeadNorm::kNone || (p.q_norm != nullptr && p.k_norm != nullptr), "weights of the norm");
  QD_CHECK(p.qkv_pitch >= num_heads * p.pages.head_dim && p.qkv_pitch % 8 == 0, "a pitch that holds the row");
  QD_CHECK(on_16_bytes(p.qkv) && on_16_bytes(p.q) && on_16_bytes(p.q_norm) && on_16_bytes(p.k_norm) &&
               on_16_bytes(p.whole_q) && on_16_bytes(p.whole_k) && on_16_bytes(p.pages.data),
           "rows on 16 bytes");
  QD_CHECK(p.whole_q_width % 8 == 0 && p.whole_k_width % 8 == 0, "whole rows of a multiple of 8 columns");
  QD_CHECK(p.clip >= 0, "a clip of 0 (none) or above");
  if (p.num_tokens == 0) return;
  const bool is_wide = p.pages.head_dim > 128;
  const bool by_vector = p.rotary_dim % 16 == 0 && on_16_bytes(p.cos) && on_16_bytes(p.sin);
  const SplitKernel kernel = is_wide ? (by_vector ? split_heads_kernel<32, true> : split_heads_kernel<32, false>)
                                     : (by_vector ? split_heads_kernel<16, true> : split_heads_kernel<16, false>);
  // With tokens enough a block takes all heads of one.
  constexpr int64_t kEnoughTokens = 512;
  const int64_t parts = p.num_tokens >= kEnoughTokens ? 1 : ceil_div(num_heads, kThreads / (is_wide ? 32 : 16));
  const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(parts));
  launch_chained(kernel, grid, dim3(kThreads), 0, native(stream), p);
  check_launch("split_heads");
}

}  // namespace quadrille::kernels::cuda
