// SPDX-License-Identifier: Apache-2.0
// One block of 64 keys for 16 query rows of a warp, the same instructions in the same order wherever it is called:
// scores, weights relative to the block's own maximum, and sums of values, 32 dimensions at a time; and the fold of a
// block into what came before it. docs/kernels/decoder.md defines the arithmetic, layout/kv_tile.h the tile.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention/spread.h"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "layout/kv_tile.h"

namespace quadrille::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

template <int Dim>
struct Tile {
  static_assert(layout::padded_head_dim(Dim) == Dim);
  static constexpr int kChunks = Dim / 32;
  static constexpr int kKeyBytes = kKeyBlock * Dim * 2;
  static constexpr int kBytes = 2 * kKeyBytes;  // keys, then values
};

// Words 2h and 2h + 1 of chunk c of a row are the k of step (c, h): dimensions 32 c + 8 t + 4 h + {0, 1} and {2, 3}.
// Pieces 2h and 2h + 1 of a key have theirs alike (layout/kv_tile.h).
__device__ __forceinline__ uint4 query_piece(const uint16_t* q, int dim, int64_t head_dim) {
  uint4 v = make_uint4(0, 0, 0, 0);
  if (q != nullptr && dim < head_dim) {
    // volatile: a head above 128 dimensions does not fit in registers, so its loads stay inside the loop over blocks.
    // Not .nc: the predecessor in the stream may still have been writing q when this kernel began.
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(q + dim));
  }
  return v;
}

// A fragments of 16 query rows: row g in [0], row g + 8 in [1]; held, or read from the first cache for every block.
template <int Dim, bool Held = (Dim <= 128)>
struct Queries;
template <int Dim>
struct Queries<Dim, true> {
  uint4 row[2][Dim / 32];

  // q: the row [head_dim]; null: zeros.
  __device__ __forceinline__ void load(int r, const uint16_t* q, int64_t head_dim, int t) {
#pragma unroll
    for (int c = 0; c < Dim / 32; ++c) row[r][c] = query_piece(q, 32 * c + 8 * t, head_dim);
  }
  __device__ __forceinline__ uint4 piece(int r, int c) const { return row[r][c]; }
};
template <int Dim>
struct Queries<Dim, false> {
  const uint16_t* row[2];
  int head_dim, first;

  __device__ __forceinline__ void load(int r, const uint16_t* q, int64_t dims, int t) {
    row[r] = q;
    head_dim = static_cast<int>(dims);
    first = 8 * t;
  }
  __device__ __forceinline__ uint4 piece(int r, int c) const { return query_piece(row[r], 32 * c + first, head_dim); }
};

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// score[j]: keys 8 j + 2 t, + 1 of row g, then of row g + 8.
template <int Dim>
__device__ __forceinline__ void block_scores(const Queries<Dim>& q, const uint8_t* tile, int lane,
                                             float (&score)[8][4]) {
  const uint32_t keys = ptx::shared_address(tile);
#pragma unroll
  for (int j = 0; j < 8; ++j) score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0.0f;
    // Where queries are not held, their loads must not pile up either.
#pragma unroll(Dim <= 128 ? Dim / 32 : 2)
  for (int c = 0; c < Dim / 32; ++c) {
    const uint4 low = q.piece(0, c);
    const uint4 high = q.piece(1, c);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t key[4];
      ptx::load_matrices(keys + key_piece_at(j, c, lane), key);
      ptx::mma_bf16(score[j], low.x, high.x, low.y, high.y, key[0], key[1]);
      ptx::mma_bf16(score[j], low.z, high.z, low.w, high.w, key[2], key[3]);
    }
  }
}

// What the 16 rows see of the block: keys [first, last] of the block, for rows g and g + 8; last < first: none.
struct SeenInBlock {
  int first[2];
  int last[2];
};
__device__ __forceinline__ void hide_unseen(const SeenInBlock& seen, int t, float (&score)[8][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = 8 * j + 2 * t + i % 2;
      const bool visible = key >= seen.first[i / 2] && key <= seen.last[i / 2];
      score[j][i] = visible ? score[j][i] : -__int_as_float(0x7f800000);
    }
  }
}

// Scores become 2^(score * scale2 - top); top: the largest score of the row times scale2.
__device__ __forceinline__ void scores_to_powers(float (&score)[8][4], float scale2, float (&top)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = fmaxf(score[0][2 * r], score[0][2 * r + 1]);
#pragma unroll
    for (int j = 1; j < 8; ++j) largest = fmaxf(largest, fmaxf(score[j][2 * r], score[j][2 * r + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    top[r] = largest * scale2;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        score[j][2 * r + e] = ptx::exp2_fast(__builtin_fmaf(score[j][2 * r + e], scale2, -top[r]));
      }
    }
  }
}
// Powers, rounded, as A fragments of four k16 steps.
__device__ __forceinline__ void powers_to_weights(const float (&power)[8][4], uint32_t (&a)[4][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) a[j / 2][j % 2 * 2 + r] = ptx::bf16_pair(power[j][2 * r], power[j][2 * r + 1]);
  }
}

// norm: the sum of the weights as they are multiplied (rounded to bf16), by the tensor cores as everything else.
struct Weights {
  uint32_t a[4][4];
  float top[2];
  float norm[2];
};
__device__ __forceinline__ void block_weights(float (&score)[8][4], float scale2, Weights& w) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  scores_to_powers(score, scale2, w.top);
  powers_to_weights(score, w.a);
  float sum[4] = {};
#pragma unroll
  for (int s = 0; s < 4; ++s) ptx::mma_bf16(sum, w.a[s][0], w.a[s][1], w.a[s][2], w.a[s][3], kOnes, kOnes);
  w.norm[0] = sum[0];
  w.norm[1] = sum[2];
}

// sum[j]: dimensions 32 chunk + 8 j + 2 t, + 1 (row g, row g + 8 in [2], [3]).
template <int Dim>
__device__ __forceinline__ void block_values(const Weights& w, const uint8_t* tile, int chunk, int lane,
                                             float (&sum)[4][4]) {
  const uint32_t values = ptx::shared_address(tile) + Tile<Dim>::kKeyBytes;
#pragma unroll
  for (int j = 0; j < 4; ++j) sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0.0f;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t value[4];
      ptx::load_matrices_transposed(values + value_piece_at(s, chunk, j, lane), value);
      ptx::mma_bf16(sum[j], w.a[s][0], w.a[s][1], w.a[s][2], w.a[s][3], value[0], value[1]);
      ptx::mma_bf16(sum[j + 1], w.a[s][0], w.a[s][1], w.a[s][2], w.a[s][3], value[2], value[3]);
    }
  }
}

// A row's running maximum (times scale2) and sum of weights over the blocks so far.
struct Running {
  float top = -__builtin_inff();
  float norm = 0.0f;
};
// What a fold multiplies: sum = fmaf(sum, keep, take * block_sum).
struct Fold {
  float keep;
  float take;
};
__device__ __forceinline__ Fold fold_factors(float old_top, float block_top, float top) {
  return {ptx::exp2_fast(old_top - top), ptx::exp2_fast(block_top - top)};
}
__device__ __forceinline__ Fold fold_block(Running& running, float block_top, float block_norm) {
  const float top = fmaxf(running.top, block_top);
  const Fold fold = fold_factors(running.top, block_top, top);
  running.norm = __builtin_fmaf(running.norm, fold.keep, fold.take * block_norm);
  running.top = top;
  return fold;
}
__device__ __forceinline__ float folded(float sum, const Fold& fold, float block_sum) {
  return __builtin_fmaf(sum, fold.keep, fold.take * block_sum);
}

// Values of positions behind `last` of the block become zero, so that their weights of zero meet no NaN of whoever
// used the page before. Called by `threads` threads; the caller orders it before the reads.
template <int Dim>
__device__ __forceinline__ void clear_values_behind(uint8_t* tile, int last, int thread, int threads) {
#pragma unroll 1
  for (int c = 0; c < Tile<Dim>::kChunks; ++c) {
    uint8_t* chunk = tile + Tile<Dim>::kKeyBytes + c * 4096;
#pragma unroll 1
    for (int i = (last + 1) * 4 + thread; i < kKeyBlock * 4; i += threads) {
      *reinterpret_cast<uint4*>(chunk + i * 16) = make_uint4(0, 0, 0, 0);
    }
  }
}

}  // namespace quadrille::kernels::cuda
