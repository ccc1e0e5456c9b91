// SPDX-License-Identifier: Apache-2.0
// The INT4 x FP8 product in the CPU order (docs/numerics.md section 3), for a share of one expert's output rows.
// Up to four tokens: weights are decoded in registers and meet each token at once (`direct`). More: 32 rows x 128 k are
// decoded into an L1 panel that a block of token tiles uses (`panel`). Both run the same chains.
#pragma once

#include "kernels/cpu/body/gemm_tile.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kStep = 32;
constexpr int kDirectTokens = 4;

// Index inside a k32 step: even positions first, then odd ones.
QD_HD constexpr int packed_position(int i) {
  return (i & 1) * 16 + i / 2;
}

// The k axis of a product: steps of 32 that share an accumulator in `exact`, and the row of scales that they use.
struct KAxis {
  int64_t kp = 0;
  int64_t piece = 0;  // positions that share an accumulator
  int64_t num_pieces = 0;
  int64_t num_groups = 0;  // rows of scales a block

  QD_HD int64_t steps(int64_t index) const { return smaller(piece, kp - index * piece) / kStep; }
  QD_HD int64_t group(int64_t index) const { return num_groups == 1 ? 0 : index; }
};

QD_HD KAxis k_axis(const W4A8Gemm& gemm) {
  KAxis axis;
  axis.kp = round_up(gemm.k, kStep);
  axis.piece = gemm.group_size == 0 ? 128 : gemm.group_size;
  axis.num_pieces = (gemm.k + axis.piece - 1) / axis.piece;
  axis.num_groups = gemm.group_size == 0 ? 1 : axis.num_pieces;
  return axis;
}

// Scales of one vector of rows in one group: `exact` s_g * 2^-9 (weights count in q); `vllm` the e4m3 group scale.
template <class S, bool kVllm>
QD_HD typename S::F load_scale(const W4Matrix& weights, const KAxis& axis, int64_t vector, int64_t group) {
  const int64_t offset = (Rows<S>::block(vector) * axis.num_groups + group) * kBlockRows + Rows<S>::lane(vector);
  if constexpr (kVllm) return S::load_e4m3(weights.scale_e4m3 + offset);
  return S::mul(S::load_bf16(weights.scale_bf16 + offset), S::set(0x1p-9f));
}

// The weight operand of nibble J: q, or the value of E4(s8 * q).
template <class S, bool kVllm, int J>
QD_HD typename S::F weight(typename S::I words, typename S::F scale) {
  const typename S::F q = S::template nibble<J>(words);
  if constexpr (kVllm) return S::round_e4m3(S::mul(scale, q));
  return q;
}

template <class S>
QD_HD const uint32_t* words_of(const W4Matrix& weights, const KAxis& axis, int64_t vector) {
  return weights.codes + Rows<S>::block(vector) * (axis.kp / 8) * kBlockRows + Rows<S>::lane(vector);
}

// y of `total` and the scales of the row and of the channel.
template <class S, bool kVllm>
QD_HD typename S::F result(const W4Matrix& weights, int64_t row, float act_scale, typename S::F total) {
  if constexpr (kVllm) return S::mul(S::load(weights.channel_scale + row), S::mul(S::set(act_scale), total));
  return S::mul(total, S::set(act_scale * 512.0f));
}

// Stores y of one vector of rows; fp32 with its NaN canonical.
template <class S>
QD_HD void store_result(const W4A8Gemm& gemm, int64_t expert, int64_t slot, int64_t row, typename S::F y) {
  const float* bias = gemm.bias != nullptr ? gemm.bias[expert] : nullptr;
  store_rows<S>(gemm.out + slot * gemm.n, bias, gemm.n, row, y, [](typename S::F v) { return S::number_or_nan(v, v); });
}

// ---- direct: V vectors of rows x M tokens ----

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

// ---- panel: 32 rows x 128 k decoded, token tiles of up to kTileTokens ----

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

// One piece of one register tile: vllm goes on with its one chain in `total`; exact adds scale * (chain from +0).
template <class S, bool kVllm, int T>
__attribute__((noinline)) void panel_tile(const float* weights, const float* act, int64_t steps, const float* scale,
                                          float* total) {
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
      S::store(to, S::fma(s, S::load(acc + i * S::kLanes), S::load(to)));
    }
  }
}

using PanelTile = void (*)(const float*, const float*, int64_t, const float*, float*);

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

  void add_piece(int64_t piece) const {
    const W4Matrix& weights = gemm.weights[share.expert];
    decode_panel<S, kVllm>(weights, axis, first_vector, num_vectors, piece, share.scratch);
    alignas(64) float scale[kPanelRows] = {};
    if constexpr (!kVllm) {
      for (int64_t v = 0; v < num_vectors; ++v) {
        S::store(scale + v * S::kLanes, load_scale<S, false>(weights, axis, first_vector + v, axis.group(piece)));
      }
    }
    for (int64_t tile = tile_first; tile < tile_last; ++tile) {
      const int64_t slot = rows.tile_slot(tile);
      const int64_t count = tokens(tile);
      const float* act = share.packed + slot * axis.kp + piece * axis.piece * count;
      const PanelTile run = panel_tile_of<S, kVllm>(count);
      for (int64_t r = 0; r < num_register_tiles(); ++r) {
        run(share.scratch + r * kPanelDepth * kWidth, act, axis.steps(piece), scale + r * kWidth, total(r, slot));
      }
    }
  }

  void finish() const {
    for (int64_t slot = rows.tile_slot(tile_first); slot < rows.tile_slot(tile_last); ++slot) {
      const float act_scale = gemm.act_scale[source_of(gemm.rows, slot)];
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

template <class S, bool kVllm>
void w4a8_share(const W4A8Gemm& gemm, const GemmShare& share) {
  const ExpertRows rows = expert_rows(gemm.rows, share.expert, S::kTileTokens);
  switch (rows.split.rows) {
    case 0:
      return;
    case 1:
      return direct_share<S, kVllm, S::kDirectVectors1, 1>(gemm, share, rows.first);
    case 2:
      return direct_share<S, kVllm, S::kDirectVectors2, 2>(gemm, share, rows.first);
    case 3:
      return direct_share<S, kVllm, S::kDirectVectors4, 3>(gemm, share, rows.first);
    case 4:
      return direct_share<S, kVllm, S::kDirectVectors4, 4>(gemm, share, rows.first);
    default:
      return panel_share<S, kVllm>(gemm, share, rows);
  }
}

// One tile of token rows as fp32 in packed order; zero behind k.
template <class S>
void pack_w4a8_tile(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  const ExpertRows rows = expert_rows(gemm.rows, expert, S::kTileTokens);
  const int64_t kp = round_up(gemm.k, kStep);
  const int64_t first = rows.tile_slot(tile);
  const int64_t tokens = rows.tile_slot(tile + 1) - first;
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* codes = gemm.act + source_of(gemm.rows, first + t) * gemm.k;
    float* out = packed + first * kp + t;
    for (int64_t k = 0; k < kp; k += kStep, codes += kStep, out += kStep * tokens) {
      alignas(64) float values[kStep];
      alignas(32) uint8_t tail[kStep] = {};
      const uint8_t* from = codes;
      if (gemm.k - k < kStep) {
        for (int64_t i = 0; i < gemm.k - k; ++i) tail[i] = codes[i];
        from = tail;
      }
      for (int i = 0; i < kStep; i += S::kLanes) S::store(values + i, S::load_e4m3(from + i));
#pragma GCC unroll 32
      for (int i = 0; i < kStep; ++i) out[packed_position(i) * tokens] = values[i];
    }
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
