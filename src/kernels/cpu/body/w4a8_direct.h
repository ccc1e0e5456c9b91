// SPDX-License-Identifier: Apache-2.0
// The W4A8 product of a tile of tokens whose weights are decoded in registers and used at once: the only form for one
// tile, and with a cheap decoder the fastest for many.
#pragma once

#include "kernels/cpu/body/w4a8_weight.h"

namespace quadrille::kernels::cpu {
namespace {

template <class S, int V, int M>
struct Chains {
  typename S::F even[V][M];
  typename S::F odd[V][M];
};

// Eight positions (one word) of V vectors of rows into the chains of M tokens; act [32][M] of the step.
template <class S, bool kVllm, int V, int M, int J = 0>
QD_HD void direct_word(const typename S::I (&words)[V], const typename S::F (&scale)[V], const float* act,
                       Chains<S, V, M>& chains) {
  if constexpr (J < 8) {
    const float* a = act + packed_position(J) * M;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const typename S::F w = weight<S, kVllm, J>(words[v], scale[v]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        typename S::F& chain = J % 2 == 0 ? chains.even[v][m] : chains.odd[v][m];
        chain = S::fma_exact(w, S::set(a[m]), chain);
      }
    }
    direct_word<S, kVllm, V, M, J + 1>(words, scale, act, chains);
  }
}

// One k32 step: acc = acc + (e + o).
template <class S, bool kVllm, int V, int M>
QD_HD void direct_step(const uint32_t* const (&codes)[V], const typename S::F (&scale)[V], const float* act,
                       typename S::F (&acc)[V][M]) {
  Chains<S, V, M> chains;
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) chains.even[v][m] = chains.odd[v][m] = S::zero();
  }
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    typename S::I words[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) words[v] = S::load_words(codes[v] + w * kBlockRows);
    direct_word<S, kVllm, V, M>(words, scale, act + w * 4 * M, chains);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      acc[v][m] = S::add(acc[v][m], S::add(chains.even[v][m], chains.odd[v][m]));
    }
  }
}

template <class S, bool kVllm, int V, int M>
__attribute__((noinline)) void direct(const W4A8Gemm& gemm, const GemmShare& share, int64_t first_slot,
                                      int64_t vector) {
  using F = typename S::F;
  const KAxis axis = k_axis(gemm);
  const W4Matrix& weights = gemm.weights[share.expert];
  const float* act = share.packed + first_slot * axis.kp;
  const uint32_t* codes[V];
  F acc[V][M], total[V][M], scale[V];
  for (int v = 0; v < V; ++v) {
    codes[v] = words_of<S>(weights, axis, vector + v);
    for (int m = 0; m < M; ++m) acc[v][m] = total[v][m] = S::zero();
  }
  for (int64_t piece = 0; piece < axis.num_pieces; ++piece) {
    for (int v = 0; v < V; ++v) scale[v] = load_scale<S, kVllm>(weights, axis, vector + v, axis.group(piece));
    for (int64_t step = axis.steps(piece); step > 0; --step) {
      direct_step<S, kVllm, V, M>(codes, scale, act, acc);
      for (int v = 0; v < V; ++v) codes[v] += 4 * kBlockRows;
      act += kStep * M;
    }
    if constexpr (!kVllm) {
      for (int v = 0; v < V; ++v) {
        for (int m = 0; m < M; ++m) {
          total[v][m] = S::fma(scale[v], acc[v][m], total[v][m]);
          acc[v][m] = S::zero();
        }
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    const int64_t slot = first_slot + m;
    const float act_scale = gemm.act_scale[source_of(gemm.rows, slot)];
    for (int v = 0; v < V; ++v) {
      const int64_t row = (vector + v) * S::kLanes;
      const F y = result<S, kVllm>(weights, row, act_scale, kVllm ? acc[v][m] : total[v][m]);
      store_result<S>(gemm, share.expert, slot, row, y);
    }
  }
}

template <class S, bool kVllm, int V, int M>
void direct_share(const W4A8Gemm& gemm, const GemmShare& share, int64_t first_slot) {
  int64_t vector = share.panel_begin * Rows<S>::kPerPanel;
  const int64_t end = smaller(share.panel_end * Rows<S>::kPerPanel, Rows<S>::count(gemm.n));
  for (; vector + V <= end; vector += V) direct<S, kVllm, V, M>(gemm, share, first_slot, vector);
  if constexpr (V > 1) {
    for (; vector < end; ++vector) direct<S, kVllm, 1, M>(gemm, share, first_slot, vector);
  }
}

// One tile of `tokens` tokens, 1 <= tokens <= kTileTokens.
template <class S, bool kVllm, int M = 1>
void direct_tile(const W4A8Gemm& gemm, const GemmShare& share, int64_t slot, int64_t tokens) {
  if constexpr (M < S::kTileTokens) {
    if (tokens > M) return direct_tile<S, kVllm, M + 1>(gemm, share, slot, tokens);
  }
  direct_share<S, kVllm, M == 1 ? S::kDirectVectors1 : (M == 2 ? S::kDirectVectors2 : S::kDirectVectors3), M>(
      gemm, share, slot);
}

// run_tile(panel, slot, tokens) for every tile of the share, panel by panel, so that a panel's weights come from the
// first cache for every tile but the first of a block.
template <typename Tile>
QD_HD void for_panel_tiles(const GemmShare& share, const ExpertRows& rows, const Tile& run_tile) {
  for (int64_t first = 0; first < rows.split.num_tiles; first += kBlockTiles) {
    const int64_t last = smaller(first + kBlockTiles, rows.split.num_tiles);
    GemmShare one = share;
    for (one.panel_begin = share.panel_begin; one.panel_begin < share.panel_end; ++one.panel_begin) {
      one.panel_end = one.panel_begin + 1;
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t slot = rows.tile_slot(tile);
        run_tile(one, slot, rows.tile_slot(tile + 1) - slot);
      }
    }
  }
}

template <class S, bool kVllm>
void direct_rows(const W4A8Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  for_panel_tiles(share, rows, [&](const GemmShare& one, int64_t slot, int64_t tokens) {
    direct_tile<S, kVllm>(gemm, one, slot, tokens);
  });
}

}  // namespace
}  // namespace quadrille::kernels::cpu
