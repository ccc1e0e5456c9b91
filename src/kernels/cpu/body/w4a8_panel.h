// SPDX-License-Identifier: Apache-2.0
// The W4A8 product of many tokens: 32 rows x 128 k are decoded into a panel in the first cache, which a block of token
// tiles then uses. The chains are those of the direct form.
#pragma once

#include "kernels/cpu/body/w4a8_weight.h"

namespace quadrille::kernels::cpu {
namespace {

template <class S, bool kVllm, int J = 0>
QD_HD void decode_word(typename S::I words, typename S::F scale, float* panel) {
  if constexpr (J < 8) {
    S::store(panel + packed_position(J) * S::kTileVectors * S::kLanes, weight<S, kVllm, J>(words, scale));
    decode_word<S, kVllm, J + 1>(words, scale, panel);
  }
}

// Steps [step, step + steps) of the panel's rows: [register tile][position in packed order][kTileVectors * kLanes].
template <class S, bool kVllm>
__attribute__((noinline)) void decode_panel(const W4Matrix& weights, const KAxis& axis, int64_t first_vector,
                                            int64_t num_vectors, int64_t piece, float* panel) {
  constexpr int kWidth = S::kTileVectors * S::kLanes;
  const int64_t steps = axis.steps(piece);
  // A register tile that sticks out of the matrix works on zeros there.
  if (num_vectors % S::kTileVectors != 0) {
    for (int64_t i = 0; i < kPanelRows * kPanelDepth; i += S::kLanes) S::store(panel + i, S::zero());
  }
  for (int64_t v = 0; v < num_vectors; ++v) {
    const int64_t vector = first_vector + v;
    const uint32_t* codes = words_of<S>(weights, axis, vector) + piece * (axis.piece / 8) * kBlockRows;
    typename S::F scale = S::zero();
    if constexpr (kVllm) scale = load_scale<S, true>(weights, axis, vector, axis.group(piece));
    float* out = panel + (v / S::kTileVectors * kPanelDepth * S::kTileVectors + v % S::kTileVectors) * S::kLanes;
    for (int64_t step = 0; step < steps; ++step) {
      for (int w = 0; w < 4; ++w) {
        decode_word<S, kVllm>(S::load_words(codes + w * kBlockRows), scale, out + w * 4 * kWidth);
      }
      codes += 4 * kBlockRows;
      out += kStep * kWidth;
    }
  }
}

// 16 positions of one half step into chains from +0; weights [16][kTileVectors * kLanes], act [16][T].
template <class S, int T>
QD_HD void half_step(const float* weights, const float* act, typename S::F (&chain)[T][S::kTileVectors]) {
  constexpr int kVectors = S::kTileVectors;
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) chain[t][v] = S::zero();
  }
  for (int i = 0; i < 16; ++i) {
    typename S::F w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = S::load(weights + (i * kVectors + v) * S::kLanes);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      const typename S::F a = S::set(act[i * T + t]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) chain[t][v] = S::fma_exact(w[v], a, chain[t][v]);
    }
  }
}

// acc[T][kTileVectors * kLanes] = acc + (e + o) for each of `steps` steps.
template <class S, int T>
QD_HD void tile_steps(const float* weights, const float* act, int64_t steps, float* acc) {
  constexpr int kVectors = S::kTileVectors;
  for (int64_t step = 0; step < steps; ++step) {
    alignas(64) float even[T * kVectors * S::kLanes];
    typename S::F chain[T][kVectors];
    half_step<S, T>(weights, act, chain);
#pragma GCC unroll 32
    for (int i = 0; i < T * kVectors; ++i) S::store(even + i * S::kLanes, chain[i / kVectors][i % kVectors]);
    half_step<S, T>(weights + 16 * kVectors * S::kLanes, act + 16 * T, chain);
#pragma GCC unroll 32
    for (int i = 0; i < T * kVectors; ++i) {
      const typename S::F sum = S::add(S::load(even + i * S::kLanes), chain[i / kVectors][i % kVectors]);
      S::store(acc + i * S::kLanes, S::add(S::load(acc + i * S::kLanes), sum));
    }
    weights += kStep * kVectors * S::kLanes;
    act += kStep * T;
  }
}

// One piece of one register tile: vllm goes on with its one chain in `total`; exact adds scale * (chain from +0), and
// with block scales [T] scale * (block scale * chain).
template <class S, bool kVllm, int T>
__attribute__((noinline)) void panel_tile(const float* weights, const float* act, int64_t steps, const float* scale,
                                          const float* block, float* total) {
  constexpr int kVectors = S::kTileVectors;
  if constexpr (kVllm) {
    tile_steps<S, T>(weights, act, steps, total);
  } else {
    alignas(64) float acc[T * kVectors * S::kLanes];
    for (int i = 0; i < T * kVectors; ++i) S::store(acc + i * S::kLanes, S::zero());
    tile_steps<S, T>(weights, act, steps, acc);
    for (int i = 0; i < T * kVectors; ++i) {
      float* to = total + i * S::kLanes;
      const typename S::F s = S::load(scale + i % kVectors * S::kLanes);
      typename S::F sum = S::load(acc + i * S::kLanes);
      // The product with the block scale is rounded, so the sum is brought into the contract's unit first.
      if (block != nullptr) sum = S::mul(S::set(block[i / kVectors]), S::mul(sum, S::set(numerics::kExactUnit)));
      S::store(to, S::fma(s, sum, S::load(to)));
    }
  }
}

using PanelTile = void (*)(const float*, const float*, int64_t, const float*, const float*, float*);

template <class S, bool kVllm, int T = 1>
QD_HD PanelTile panel_tile_of(int64_t tokens) {
  if constexpr (T < S::kTileTokens) {
    return tokens == T ? panel_tile<S, kVllm, T> : panel_tile_of<S, kVllm, T + 1>(tokens);
  }
  return panel_tile<S, kVllm, S::kTileTokens>;
}

// Tiles [tile_first, tile_last) of the expert's rows against one panel of 32 output rows.
template <class S, bool kVllm>
struct PanelBlock {
  static constexpr int kWidth = S::kTileVectors * S::kLanes;
  const W4A8Gemm& gemm;
  const GemmShare& share;
  const KAxis& axis;
  const ExpertRows& rows;
  int64_t first_vector;
  int64_t num_vectors;  // of the panel that exist in the layout
  int64_t tile_first;
  int64_t tile_last;

  QD_HD int64_t num_register_tiles() const { return (num_vectors + S::kTileVectors - 1) / S::kTileVectors; }
  QD_HD int64_t tokens(int64_t tile) const { return rows.tile_slot(tile + 1) - rows.tile_slot(tile); }

  // Sums lie in scratch: [register tile][token of the block][kWidth].
  QD_HD float* total(int64_t register_tile, int64_t slot) const {
    float* sums = share.scratch + kPanelRows * kPanelDepth;
    const int64_t block_tokens = rows.tile_slot(tile_last) - rows.tile_slot(tile_first);
    return sums + (register_tile * block_tokens + slot - rows.tile_slot(tile_first)) * kWidth;
  }

  void clear() const {
    float* first = total(0, rows.tile_slot(tile_first));
    float* last = total(num_register_tiles(), rows.tile_slot(tile_first));
    for (float* p = first; p < last; p += S::kLanes) S::store(p, S::zero());
  }

  // exact: the group scales of the panel's rows, in units of the sums that they multiply.
  void load_scales(int64_t piece, float (&scale)[kPanelRows]) const {
    const W4Matrix& weights = gemm.weights[share.expert];
    for (int64_t v = 0; v < num_vectors; ++v) {
      const int64_t vector = first_vector + v;
      const typename S::F s = block_scaled(gemm) ? load_group_scale<S>(weights, axis, vector, axis.group(piece))
                                                 : load_scale<S, false>(weights, axis, vector, axis.group(piece));
      S::store(scale + v * S::kLanes, s);
    }
  }

  // The block scales of a tile's tokens, or null where there are none.
  QD_HD const float* block_scales(int64_t slot, int64_t count, int64_t piece, float (&block)[S::kTileTokens]) const {
    if (!block_scaled(gemm)) return nullptr;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t column = piece * axis.piece;
      block[t] = gemm.block_scale.of(share.expert, source_of(gemm.rows, slot + t), column / kScaleBlock);
    }
    return block;
  }

  void add_piece(int64_t piece) const {
    decode_panel<S, kVllm>(gemm.weights[share.expert], axis, first_vector, num_vectors, piece, share.scratch);
    alignas(64) float scale[kPanelRows] = {};
    if constexpr (!kVllm) load_scales(piece, scale);
    for (int64_t tile = tile_first; tile < tile_last; ++tile) {
      const int64_t slot = rows.tile_slot(tile);
      const int64_t count = tokens(tile);
      const float* act = share.packed + slot * axis.kp + piece * axis.piece * count;
      float block_of_token[S::kTileTokens];
      const float* block = block_scales(slot, count, piece, block_of_token);
      const PanelTile run = panel_tile_of<S, kVllm>(count);
      for (int64_t r = 0; r < num_register_tiles(); ++r) {
        run(share.scratch + r * kPanelDepth * kWidth, act, axis.steps(piece), scale + r * kWidth, block,
            total(r, slot));
      }
    }
  }

  void finish() const {
    for (int64_t slot = rows.tile_slot(tile_first); slot < rows.tile_slot(tile_last); ++slot) {
      const float act_scale = block_scaled(gemm) ? 1.0f : gemm.act_scale[source_of(gemm.rows, slot)];
      for (int64_t v = 0; v < num_vectors; ++v) {
        const int64_t row = (first_vector + v) * S::kLanes;
        const float* from = total(v / S::kTileVectors, slot) + v % S::kTileVectors * S::kLanes;
        const typename S::F y = result<S, kVllm>(gemm.weights[share.expert], row, act_scale, S::load(from));
        store_result<S>(gemm, share.expert, slot, row, y);
      }
    }
  }
};

template <class S, bool kVllm>
void panel_share(const W4A8Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  const KAxis axis = k_axis(gemm);
  for (int64_t tile = 0; tile < rows.split.num_tiles; tile += kBlockTiles) {
    for (int64_t panel = share.panel_begin; panel < share.panel_end; ++panel) {
      const int64_t first_vector = panel * Rows<S>::kPerPanel;
      const int64_t num_vectors = smaller(Rows<S>::kPerPanel, Rows<S>::count(gemm.n) - first_vector);
      const PanelBlock<S, kVllm> block{
          gemm, share, axis, rows, first_vector, num_vectors, tile, smaller(tile + kBlockTiles, rows.split.num_tiles)};
      block.clear();
      for (int64_t piece = 0; piece < axis.num_pieces; ++piece) block.add_piece(piece);
      block.finish();
    }
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
