// SPDX-License-Identifier: Apache-2.0
// The bf16 product: every output is one fma chain over k ascending, whatever the number of rows, so the bits of a row
// do not depend on the batch. Few tokens: weights are widened in registers (`direct`); many: through an L1 panel.
#pragma once

#include "kernels/cpu/body/gemm_tile.h"

namespace quadrille::kernels::cpu {
namespace {

template <class S>
QD_HD const uint16_t* bf16_rows_of(const Bf16Gemm& gemm, int64_t expert, int64_t vector) {
  return gemm.weights[expert] + Rows<S>::block(vector) * gemm.k * kBlockRows + Rows<S>::lane(vector);
}

template <class S>
QD_HD void bf16_store(const Bf16Gemm& gemm, int64_t expert, int64_t slot, int64_t row, typename S::F y) {
  const float* bias = gemm.bias != nullptr ? gemm.bias[expert] : nullptr;
  const bool to_bf16 = gemm.rounding == Rounding::kBf16;
  store_rows<S>(gemm.out + slot * gemm.n, bias, gemm.n, row, y,
                [to_bf16](typename S::F v) { return to_bf16 ? S::round_bf16(v) : S::number_or_nan(v, v); });
}

// ---- direct: V vectors of rows x M tokens; tokens are read where they lie ----

template <class S, int V, int M>
__attribute__((noinline)) void bf16_direct(const Bf16Gemm& gemm, const GemmShare& share, int64_t first_slot,
                                           int64_t vector) {
  using F = typename S::F;
  const uint16_t* weights[V];
  const float* x[M];
  F chain[V][M];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) weights[v] = bf16_rows_of<S>(gemm, share.expert, vector + v);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    x[m] = gemm.x + source_of(gemm.rows, first_slot + m) * gemm.k;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) chain[v][m] = S::zero();
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < gemm.k; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const F w = S::load_bf16(weights[v] + k * kBlockRows);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) chain[v][m] = S::fma(S::set(x[m][k]), w, chain[v][m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      bf16_store<S>(gemm, share.expert, first_slot + m, (vector + v) * S::kLanes, chain[v][m]);
    }
  }
}

template <class S, int V, int M>
void bf16_direct_share(const Bf16Gemm& gemm, const GemmShare& share, int64_t first_slot) {
  int64_t vector = share.panel_begin * Rows<S>::kPerPanel;
  const int64_t end = smaller(share.panel_end * Rows<S>::kPerPanel, Rows<S>::count(gemm.n));
  for (; vector + V <= end; vector += V) bf16_direct<S, V, M>(gemm, share, first_slot, vector);
  if constexpr (V > 1) {
    for (; vector < end; ++vector) bf16_direct<S, 1, M>(gemm, share, first_slot, vector);
  }
}

// One tile of `tokens` tokens, 1 <= tokens <= kTileTokens.
template <class S, int M = 1>
void bf16_direct_tile(const Bf16Gemm& gemm, const GemmShare& share, int64_t slot, int64_t tokens) {
  if constexpr (M < S::kTileTokens) {
    if (tokens > M) return bf16_direct_tile<S, M + 1>(gemm, share, slot, tokens);
  }
  bf16_direct_share<S, M == 1 ? S::kBf16Vectors1 : (M == 2 ? S::kBf16Vectors2 : S::kBf16Vectors3), M>(gemm, share,
                                                                                                      slot);
}

// Two panels at a time, so that their weights come from a cache for every tile but the first of a block.
template <class S>
void bf16_direct_rows(const Bf16Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  for (int64_t first = 0; first < rows.split.num_tiles; first += kBlockTiles) {
    const int64_t last = smaller(first + kBlockTiles, rows.split.num_tiles);
    GemmShare pair = share;
    for (; pair.panel_begin < share.panel_end; pair.panel_begin += 2) {
      pair.panel_end = smaller(pair.panel_begin + 2, share.panel_end);
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t slot = rows.tile_slot(tile);
        bf16_direct_tile<S>(gemm, pair, slot, rows.tile_slot(tile + 1) - slot);
      }
    }
  }
}

// ---- panel: 32 rows x 128 k widened, token tiles packed [k][T] ----

// depth k positions of the panel's rows from k0 on: [register tile][k][kTileVectors * kLanes].
template <class S>
__attribute__((noinline)) void widen_panel(const Bf16Gemm& gemm, int64_t expert, int64_t first_vector,
                                           int64_t num_vectors, int64_t k0, int64_t depth, float* panel) {
  if (num_vectors % S::kTileVectors != 0) {
    for (int64_t i = 0; i < kPanelRows * kPanelDepth; i += S::kLanes) S::store(panel + i, S::zero());
  }
  for (int64_t v = 0; v < num_vectors; ++v) {
    const uint16_t* from = bf16_rows_of<S>(gemm, expert, first_vector + v) + k0 * kBlockRows;
    float* to = panel + (v / S::kTileVectors * kPanelDepth * S::kTileVectors + v % S::kTileVectors) * S::kLanes;
    for (int64_t k = 0; k < depth; ++k) {
      S::store(to + k * S::kTileVectors * S::kLanes, S::load_bf16(from + k * kBlockRows));
    }
  }
}

// chain[T][kTileVectors * kLanes] goes on over `depth` positions.
template <class S, int T>
__attribute__((noinline)) void bf16_tile(const float* weights, const float* x, int64_t depth, float* chains) {
  constexpr int kVectors = S::kTileVectors;
  typename S::F chain[T][kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < T * kVectors; ++i) chain[i / kVectors][i % kVectors] = S::load(chains + i * S::kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    typename S::F w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = S::load(weights + (k * kVectors + v) * S::kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const typename S::F a = S::set(x[k * T + t]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) chain[t][v] = S::fma(a, w[v], chain[t][v]);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < T * kVectors; ++i) S::store(chains + i * S::kLanes, chain[i / kVectors][i % kVectors]);
}

using Bf16Tile = void (*)(const float*, const float*, int64_t, float*);

template <class S, int T = 1>
QD_HD Bf16Tile bf16_tile_of(int64_t tokens) {
  if constexpr (T < S::kTileTokens) return tokens == T ? bf16_tile<S, T> : bf16_tile_of<S, T + 1>(tokens);
  return bf16_tile<S, S::kTileTokens>;
}

// Tiles [tile_first, tile_last) of the expert's rows against one panel of output rows.
template <class S>
void bf16_block(const Bf16Gemm& gemm, const GemmShare& share, const ExpertRows& rows, int64_t panel, int64_t tile_first,
                int64_t tile_last) {
  constexpr int kWidth = S::kTileVectors * S::kLanes;
  const int64_t first_vector = panel * Rows<S>::kPerPanel;
  const int64_t num_vectors = smaller(Rows<S>::kPerPanel, Rows<S>::count(gemm.n) - first_vector);
  const int64_t register_tiles = (num_vectors + S::kTileVectors - 1) / S::kTileVectors;
  const int64_t slot0 = rows.tile_slot(tile_first);
  const int64_t tokens = rows.tile_slot(tile_last) - slot0;
  float* sums = share.scratch + kPanelRows * kPanelDepth;  // [register tile][token][kWidth]
  for (int64_t i = 0; i < register_tiles * tokens * kWidth; i += S::kLanes) S::store(sums + i, S::zero());
  for (int64_t k = 0; k < gemm.k; k += kPanelDepth) {
    const int64_t depth = smaller(kPanelDepth, gemm.k - k);
    widen_panel<S>(gemm, share.expert, first_vector, num_vectors, k, depth, share.scratch);
    for (int64_t tile = tile_first; tile < tile_last; ++tile) {
      const int64_t slot = rows.tile_slot(tile);
      const int64_t count = rows.tile_slot(tile + 1) - slot;
      const Bf16Tile run = bf16_tile_of<S>(count);
      for (int64_t r = 0; r < register_tiles; ++r) {
        run(share.scratch + r * kPanelDepth * kWidth, share.packed + slot * gemm.k + k * count, depth,
            sums + (r * tokens + slot - slot0) * kWidth);
      }
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t v = 0; v < num_vectors; ++v) {
      const float* from = sums + (v / S::kTileVectors * tokens + t) * kWidth + v % S::kTileVectors * S::kLanes;
      bf16_store<S>(gemm, share.expert, slot0 + t, (first_vector + v) * S::kLanes, S::load(from));
    }
  }
}

template <class S>
void bf16_share(const Bf16Gemm& gemm, const GemmShare& share) {
  const ExpertRows rows = expert_rows(gemm.rows, share.expert, S::kTileTokens);
  if (rows.split.rows == 0) return;
  if (rows.split.num_tiles == 1 || S::kDirectAlways) return bf16_direct_rows<S>(gemm, share, rows);
  for (int64_t tile = 0; tile < rows.split.num_tiles; tile += kBlockTiles) {
    const int64_t last = smaller(tile + kBlockTiles, rows.split.num_tiles);
    for (int64_t panel = share.panel_begin; panel < share.panel_end; ++panel) {
      bf16_block<S>(gemm, share, rows, panel, tile, last);
    }
  }
}

// One tile of token rows as [k][T].
template <class S>
void pack_bf16_tile(const Bf16Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  const ExpertRows rows = expert_rows(gemm.rows, expert, S::kTileTokens);
  const int64_t first = rows.tile_slot(tile);
  const int64_t tokens = rows.tile_slot(tile + 1) - first;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = gemm.x + source_of(gemm.rows, first + t) * gemm.k;
    float* out = packed + first * gemm.k + t;
    for (int64_t k = 0; k < gemm.k; ++k) out[k * tokens] = x[k];
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
