// SPDX-License-Identifier: Apache-2.0
// Activation quantisation (docs/numerics.md section 2): a block a row, 16 bytes of x a load, the row kept in registers
// between its maximum and its codes; only what a block cannot hold is read twice. Two callers' forms: tokens whose
// codes go to the rows of all their routes, and rows that a tile list names. Chained kernels (ptx/chain.cuh), so what
// the step before wrote is read by plain loads.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/rowwise/e4m3_pack.cuh"
#include "kernels/cuda/rowwise/quotient.h"
#include "kernels/cuda/rowwise/row_maximum.cuh"
#include "numerics/act_quant.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = kWarpLanes;
constexpr int kColumns = kVectorColumns;  // of a vector: 16 bytes of x, 8 bytes of codes
constexpr int kMostThreads = 1024;
constexpr int kManyRowsThreads = 128;  // many small blocks share a multiprocessor; only long rows take more
constexpr int64_t kFewRows = 132;      // fewer do not fill the GPU: as many threads a row as it has vectors
constexpr int64_t kFewTiles = 16;
constexpr unsigned kWholeWarp = 0xffffffffu;

// x' = bf16(w * x).
__device__ __forceinline__ uint32_t weighted(uint32_t word, float weight) {
  return numerics::bf16_from_f32(weight * low_half(word)) |
         static_cast<uint32_t>(numerics::bf16_from_f32(weight * high_half(word))) << 16;
}

struct Row {
  const uint4* x;  // vectors of the row
  int64_t num_vectors;
  bool has_weight = false;
  float weight = 1.0f;
  const float* absmax = nullptr;  // of the whole row where x is a part of it

  __device__ __forceinline__ uint4 load(int64_t i) const {
    uint4 v = x[i];
    if (has_weight)
      v = make_uint4(weighted(v.x, weight), weighted(v.y, weight), weighted(v.z, weight), weighted(v.w, weight));
    return v;
  }
};

__device__ __forceinline__ uint32_t code_pair(uint32_t word, const Divisor& d) {
  const float low = low_half(word), high = high_half(word);
  const float a = bf16_quotient(fabsf(low), d);
  const float b = bf16_quotient(fabsf(high), d);
  return e4m3_pair(copysignf(a, low), copysignf(b, high));
}
__device__ __forceinline__ uint2 codes_of(const uint4& v, const Divisor& d) {
  return make_uint2(code_pair(v.x, d) | code_pair(v.y, d) << 16, code_pair(v.z, d) | code_pair(v.w, d) << 16);
}

// Quantises one row; `store(i, codes)` gets each vector of codes and the zero vectors up to the pitch. kHeld vectors a
// thread stay in registers. All threads of the block call it.
template <int kHeld, typename Store>
__device__ __forceinline__ float quantize_row(const Row& row, int64_t pitch_vectors, uint32_t* of_warps,
                                              const Store& store) {
  const int64_t stride = blockDim.x;
  uint4 held[kHeld];
  float maximum = 0.0f;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t i = threadIdx.x + h * stride;
    held[h] = i < row.num_vectors ? row.load(i) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int h = 0; h < kHeld; ++h) maximum = absmax_of(maximum, held[h]);
  for (int64_t i = threadIdx.x + kHeld * stride; row.absmax == nullptr && i < row.num_vectors; i += stride) {
    maximum = absmax_of(maximum, row.load(i));
  }
  // A given one is not below the row's own, so the quotients stay in the range of bf16_quotient.
  const float scale =
      numerics::act_scale_of_absmax(row.absmax != nullptr ? *row.absmax : block_maximum(maximum, of_warps));
  const Divisor divisor = divisor_of(scale);
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int64_t i = threadIdx.x + h * stride;
    if (i < row.num_vectors) store(i, codes_of(held[h], divisor));
  }
  for (int64_t i = threadIdx.x + kHeld * stride; i < row.num_vectors; i += stride)
    store(i, codes_of(row.load(i), divisor));
  for (int64_t i = row.num_vectors + threadIdx.x; i < pitch_vectors; i += stride) store(i, make_uint2(0, 0));
  return scale;
}

__device__ __forceinline__ Row row_at(const uint16_t* x, int64_t row, int64_t k) {
  return {reinterpret_cast<const uint4*>(x + row * k), k / kColumns};
}

__device__ __forceinline__ uint2* codes_at(uint8_t* act, int64_t row, int64_t pitch) {
  return reinterpret_cast<uint2*>(act + row * pitch);
}

template <int kHeld, int kThreads>
__global__ void __launch_bounds__(kThreads) tokens_kernel(QuantizeTokens p) {
  __shared__ uint32_t of_warps[kLanes];
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t t = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t pitch_vectors = p.act_pitch / kColumns;
  Row row = row_at(p.x, t, p.k);
  if (p.route_weight != nullptr) {
    row.has_weight = true;
    row.weight = p.route_weight[t];
  }
  if (p.slot_of_route == nullptr) {
    uint2* act = codes_at(p.act, t, p.act_pitch);
    const float scale =
        quantize_row<kHeld>(row, pitch_vectors, of_warps, [&](int64_t i, uint2 codes) { act[i] = codes; });
    if (threadIdx.x == 0) p.act_scale[t] = scale;
    return;
  }
  const int32_t* slots = p.slot_of_route + t * p.top_k;
  // Each warp asks whether any route is here. Storing reads the slots again, from the first cache: the lanes of the
  // last vectors are a part of a warp, which may not exchange them.
  const int32_t own_slot = lane < p.top_k ? slots[lane] : -1;
  if (p.top_k <= kLanes && __ballot_sync(kWholeWarp, own_slot >= 0) == 0) return;  // the whole block leaves
  const float scale = quantize_row<kHeld>(row, pitch_vectors, of_warps, [&](int64_t i, uint2 codes) {
#pragma unroll 4
    for (int64_t j = 0; j < p.top_k; ++j) {
      const int32_t slot = slots[j];
      if (slot >= 0) codes_at(p.act, slot, p.act_pitch)[i] = codes;
    }
  });
  for (int64_t j = threadIdx.x; j < p.top_k; j += blockDim.x) {
    const int32_t slot = slots[j];
    if (slot >= 0) p.act_scale[slot] = scale;
  }
}

// A block takes every gridDim.x-th row of every gridDim.y-th tile.
template <int kHeld, int kThreads>
__global__ void __launch_bounds__(kThreads) listed_kernel(QuantizeListed p) {
  __shared__ uint32_t of_warps[kLanes];
  const int64_t front_vectors = p.offset / kColumns;
  const int64_t pitch_vectors = p.act_pitch / kColumns - front_vectors;
  const bool one = p.list.tiles == nullptr;
  if (!one && !p.list_is_older) ptx::wait_for_predecessor();
  const int64_t num_tiles = one ? 1 : *p.list.num_tiles;
  int64_t tile = blockIdx.y;
  int64_t first = 0, count = p.list.num_rows;
  const auto look_up = [&] {
    if (one || tile >= num_tiles) return;
    first = p.list.tiles[tile].first_row;
    count = p.list.tiles[tile].num_rows;
  };
  look_up();
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  for (; tile < num_tiles; tile += gridDim.y, look_up()) {
    for (int64_t r = blockIdx.x; r < count; r += gridDim.x) {
      uint2* act = codes_at(p.act, first + r, p.act_pitch);
      for (int64_t i = threadIdx.x; i < front_vectors; i += blockDim.x) act[i] = make_uint2(0, 0);
      act += front_vectors;
      Row row = row_at(p.x, first + r, p.k);
      if (p.absmax != nullptr) row.absmax = p.absmax + first + r;
      const float scale =
          quantize_row<kHeld>(row, pitch_vectors, of_warps, [&](int64_t i, uint2 codes) { act[i] = codes; });
      if (threadIdx.x == 0) p.act_scale[first + r] = scale;
    }
  }
}

// Up to four vectors a thread.
struct RowShape {
  int held;
  int most_threads;
  int threads;
};
RowShape row_shape(int64_t k, bool few_rows) {
  const int64_t vectors = k / kColumns;
  const int64_t wished = few_rows ? kMostThreads : kManyRowsThreads;
  const int held = vectors <= wished ? 1 : vectors <= 2 * wished ? 2 : 4;
  const int64_t most = few_rows || held == 4 ? kMostThreads : kManyRowsThreads;
  const int64_t threads = (vectors + held * kLanes - 1) / (held * kLanes) * kLanes;
  return {held, static_cast<int>(most), static_cast<int>(threads < most ? threads : most)};
}

void check_rows(int64_t k, int64_t act_pitch, const void* x, const void* act) {
  QD_CHECK(k >= kColumns && k % kColumns == 0, "rows of a multiple of 8 columns");
  QD_CHECK(act_pitch >= k && act_pitch % 16 == 0, "a pitch that holds the row, a multiple of 16");
  QD_CHECK(reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(act) % 16 == 0, "rows on 16 bytes");
}

void (*tokens_kernel_for(const RowShape& shape))(QuantizeTokens) {
  if (shape.held == 4) return tokens_kernel<4, kMostThreads>;
  if (shape.held == 2) {
    return shape.most_threads == kMostThreads ? tokens_kernel<2, kMostThreads> : tokens_kernel<2, kManyRowsThreads>;
  }
  return shape.most_threads == kMostThreads ? tokens_kernel<1, kMostThreads> : tokens_kernel<1, kManyRowsThreads>;
}
void (*listed_kernel_for(const RowShape& shape))(QuantizeListed) {
  if (shape.held == 4) return listed_kernel<4, kMostThreads>;
  if (shape.held == 2) {
    return shape.most_threads == kMostThreads ? listed_kernel<2, kMostThreads> : listed_kernel<2, kManyRowsThreads>;
  }
  return shape.most_threads == kMostThreads ? listed_kernel<1, kMostThreads> : listed_kernel<1, kManyRowsThreads>;
}

}  // namespace

void quantize_tokens(const QuantizeTokens& p, device::Stream stream) {
  check_rows(p.k, p.act_pitch, p.x, p.act);
  QD_CHECK(p.num_tokens >= 0 && p.num_tokens <= INT32_MAX && p.top_k >= 1, "shapes of the tokens");
  QD_CHECK(p.slot_of_route != nullptr || p.top_k == 1, "slots of the routes where a token has more than one");
  if (p.num_tokens == 0) return;
  const RowShape shape = row_shape(p.k, p.num_tokens <= kFewRows);
  launch_chained(tokens_kernel_for(shape), static_cast<unsigned>(p.num_tokens), shape.threads, 0, native(stream), p);
  check_launch("quantize_tokens");
}

void quantize_listed(const QuantizeListed& p, device::Stream stream) {
  constexpr int64_t kRowBlocks = 16;  // of a tile; how many rows it has is known on the device alone
  constexpr int64_t kMostTileBlocks = 4096;
  constexpr int64_t kMostRowBlocks = 1 << 20;
  check_rows(p.k, p.act_pitch, p.x, p.act);
  QD_CHECK(p.offset >= 0 && p.offset % kColumns == 0 && p.offset <= p.act_pitch - p.k,
           "columns of a shard that fit into the pitch, at a multiple of 8");
  const bool one = p.list.tiles == nullptr;
  const int64_t items = one ? p.list.num_rows : p.list.max_tiles;
  QD_CHECK(items >= 0, "rows or tiles");
  if (items == 0) return;
  const int64_t most = one ? kMostRowBlocks : kMostTileBlocks;
  const auto blocks = static_cast<unsigned>(items < most ? items : most);
  const dim3 grid = one ? dim3(blocks, 1) : dim3(kRowBlocks, blocks);
  const RowShape shape = row_shape(p.k, one ? p.list.num_rows <= kFewRows : p.list.max_tiles <= kFewTiles);
  launch_chained(listed_kernel_for(shape), grid, shape.threads, 0, native(stream), p);
  check_launch("quantize_listed");
}

}  // namespace quadrille::kernels::cuda
