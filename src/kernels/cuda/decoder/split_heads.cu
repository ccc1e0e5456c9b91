// SPDX-License-Identifier: Apache-2.0
// The fused projection of a token, head by head: norm, clip, rotary embedding; q to its rows, k and v into their page.
// A block a token and eight heads of it, or up to 64 where there are tokens enough. The heads lie in shared memory:
// first their sums of squares are found, two chains a thread, then one thread a head makes the scale, then a thread
// takes vectors of eight dimensions, always the same ones, so that it fetches angles once.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/decoder/head_vector.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kThreads = 128;
constexpr int kChainPitch = kLanes + 4;  // floats: 16-byte reads of eight threads meet every bank once

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
  constexpr int kHeld = 4;
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

// Chains 2 i and 2 i + 1 of the head in `row`.
__device__ __forceinline__ float2 two_chains(const uint4* row, int head_dim, int i) {
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(row);
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 4
  for (int j = i; j < head_dim / 2; j += kLanes / 2) {
    const float low = low_value(pairs[j]), high = high_value(pairs[j]);
    sum.x = __builtin_fmaf(low, low, sum.x);
    sum.y = __builtin_fmaf(high, high, sum.y);
  }
  return sum;
}

// lane[l] + lane[l + d] for d = 16, 8, 4, 2, 1, by one thread.
template <int Distance>
__device__ __forceinline__ void add_halves(float (&lane)[kLanes]) {
#pragma unroll
  for (int i = 0; i < Distance; ++i) lane[i] = lane[i] + lane[i + Distance];
  if constexpr (Distance > 1) add_halves<Distance / 2>(lane);
}
__device__ __forceinline__ float chain_tree_sum(const float* chains) {
  float lane[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(chains + i);
    lane[i] = v.x;
    lane[i + 1] = v.y;
    lane[i + 2] = v.z;
    lane[i + 3] = v.w;
  }
  add_halves<kLanes / 2>(lane);
  return lane[0];
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

// What lies in shared memory for `heads` heads of `lanes` vectors each.
struct Room {
  uint4* rows;    // [heads, lanes]
  float* chains;  // [heads, kChainPitch]
  float* scales;  // [heads]
};
constexpr int64_t shared_bytes(int64_t heads, int64_t lanes) {
  return heads * (lanes * 16 + kChainPitch * 4 + 4);
}

// Heads [first, first + count) of a token.
struct Heads {
  int first, count;
};

// Scales of the heads that have a norm each. Ends with the block in step.
__device__ __forceinline__ void find_head_scales(const DeviceQkv& p, const Heads& heads, int lanes, const Room& room) {
  constexpr int kPairs = kLanes / 2;  // of chains
  const int head_dim = static_cast<int>(p.pages.head_dim);
  const int normed = min(heads.count, static_cast<int>(p.num_heads + p.pages.num_kv_heads) - heads.first);
  for (int i = static_cast<int>(threadIdx.x); i < normed * kPairs; i += kThreads) {
    const int head = i / kPairs, pair = i % kPairs;
    *reinterpret_cast<float2*>(room.chains + head * kChainPitch + 2 * pair) =
        two_chains(room.rows + head * lanes, head_dim, pair);
  }
  __syncthreads();  // all chains stand
  for (int i = static_cast<int>(threadIdx.x); i < normed; i += kThreads) {
    room.scales[i] = numerics::rms_scale(chain_tree_sum(room.chains + i * kChainPitch), head_dim, p.eps);
  }
  __syncthreads();  // all scales stand
}

// The lane's vector after norm and clip.
__device__ __forceinline__ uint4 scaled_vector(const DeviceQkv& p, const Head& head, int vec, float scale, uint4 v) {
  if (has_norm(p, head)) v = normed(v, scale, norm_weights(p, head, vec));
  if (p.clip != 0.0f) {
    v = make_uint4(clipped_pair(v.x, p.clip), clipped_pair(v.y, p.clip), clipped_pair(v.z, p.clip),
                   clipped_pair(v.w, p.clip));
  }
  return v;
}
// 16 lanes a head of up to 128 dimensions, else 32.
template <int Lanes, bool ByVector>
__global__ void __launch_bounds__(kThreads, 8)
    split_heads_kernel(const __grid_constant__ DeviceQkv p, int heads_per_block) {
  constexpr int kGroups = kThreads / Lanes;
  extern __shared__ __align__(16) uint8_t shared[];
  Room room;
  room.rows = reinterpret_cast<uint4*>(shared);
  room.chains = reinterpret_cast<float*>(room.rows + heads_per_block * Lanes);
  room.scales = room.chains + heads_per_block * kChainPitch;
  const int vec = static_cast<int>(threadIdx.x) % Lanes;
  const int group = static_cast<int>(threadIdx.x) / Lanes;
  const int64_t t = blockIdx.x;
  const int head_dim = static_cast<int>(p.pages.head_dim);
  Heads heads;
  heads.first = static_cast<int>(blockIdx.y) * heads_per_block;
  heads.count = min(heads_per_block, static_cast<int>(p.num_heads + 2 * p.pages.num_kv_heads) - heads.first);
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
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const uint16_t* x = p.qkv + t * p.qkv_pitch;
  float query_scale = 0.0f, key_scale = 0.0f;  // of the whole projection
  if (p.norm == HeadNorm::kWholeProjection) {
    find_whole_scales(p, x, t, room.rows, room.scales);
    query_scale = room.scales[0];
    key_scale = room.scales[1];
  }
  for (int i = group; i < heads.count; i += kGroups) {
    const uint16_t* from = x + (heads.first + i) * head_dim + vec * kVector;
    ptx::copy16_async(ptx::shared_address(room.rows + i * Lanes + vec), holds ? from : x, holds);
  }
  ptx::copies_commit();
  ptx::copies_wait<0>();
  if (p.norm == HeadNorm::kPerHead) {
    __syncthreads();  // all heads stand
    find_head_scales(p, heads, Lanes, room);
  }
  for (int base = 0; base < heads.count; base += kGroups) {
    const int i = base + group;
    const bool is_head = i < heads.count;
    const Head head = head_of(p, heads.first + i);
    uint4* row = room.rows + (is_head ? i : 0) * Lanes;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (is_head) {
      float scale = head.kind == HeadKind::kQuery ? query_scale : key_scale;
      if (p.norm == HeadNorm::kPerHead) scale = room.scales[i];
      v = scaled_vector(p, head, vec, scale, row[vec]);
      row[vec] = v;
    }
    __syncwarp();  // the heads of the warp stand, normed
    if (!is_head) continue;
    const bool rotates = head.kind != HeadKind::kValue && p.rotary_dim > 0;
    v = rotates ? rotated<ByVector>(p, rotation, row, vec, v) : canonical_vector(v);
    if (head.kind == HeadKind::kQuery ? holds : is_stored) places.store(head, head_dim, v);
  }
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

using SplitKernel = void (*)(DeviceQkv, int);

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
  const int64_t lanes = is_wide ? 32 : 16;
  constexpr int64_t kEnoughTokens = 256;
  constexpr int64_t kMostHeads = 64, kFewHeads = 8;  // of a block
  constexpr int64_t kLeastHeads = 4;                 // room for the buffers of find_whole_scales
  const int64_t most = p.num_tokens >= kEnoughTokens ? kMostHeads : kFewHeads;
  const int64_t heads = std::clamp(num_heads, kLeastHeads, most);
  const dim3 grid(static_cast<unsigned>(p.num_tokens), static_cast<unsigned>(ceil_div(num_heads, heads)));
  const int64_t room = shared_bytes(heads, lanes);
  launch_chained(kernel, grid, dim3(kThreads), static_cast<size_t>(room), native(stream), p, static_cast<int>(heads));
  check_launch("split_heads");
}

}  // namespace quadrille::kernels::cuda
