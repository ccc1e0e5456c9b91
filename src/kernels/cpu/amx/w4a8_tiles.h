// SPDX-License-Identifier: Apache-2.0
// The INT4 x FP8 product of many rows over tiles T (amx/tiles.h, or a test's emulation): 32 output rows x 128 k of
// weights are decoded into tiles in the first cache and meet every token tile. Decoding the next piece of k and scaling
// the sums of the block before are done between the dots of the current one: the tile unit works beside the vector
// ports. The bits are those of every CPU table (docs/kernels/cpu_w4a8.md, section AMX).
#pragma once

#include "kernels/cpu/amx/pieces.h"

namespace quadrille::kernels::cpu {
namespace {

// Scaling of the sums of one block (one or two token tiles), some rows at a time: into the totals, or out of them into
// the result.
template <bool kVllm>
struct SumScaler {
  using S = Simd;
  using F = S::F;

  const W4A8Gemm* gemm;
  int64_t expert;
  KAxis axis;
  TokenTiles tokens;
  const float* sums;
  float* totals = nullptr;  // of the block's first row
  int64_t tile = 0;         // the block's first
  int64_t block = 0;        // the panel's first block of 16 output rows
  int64_t piece = 0;
  int64_t row = 0;
  int64_t num_rows = 0;
  F scale[kHalves] = {S::zero(), S::zero()};

  QD_HD void begin(int64_t first_tile, int64_t num_tiles, int64_t panel, int64_t piece_index, float* to) {
    tile = first_tile;
    block = panel * kHalves;
    piece = piece_index;
    totals = to;
    row = 0;
    num_rows = num_tiles * tokens.height;
    if constexpr (!kVllm) {
      for (int half = 0; half < kHalves; ++half) scale[half] = exists(half) ? group_scale(half) : S::zero();
    }
  }

  QD_HD bool exists(int64_t half) const { return (block + half) * kBlockRows < gemm->n; }
  QD_HD bool last_piece() const { return piece + 1 == axis.num_pieces; }

  QD_HD F group_scale(int64_t half) const {
    const W4Matrix& weights = gemm->weights[expert];
    if (block_scaled(*gemm)) return load_group_scale<S>(weights, axis, block + half, axis.group(piece));
    return load_scale<S, false>(weights, axis, block + half, axis.group(piece));
  }

  QD_HD void advance(int64_t count) {
    const int64_t end = smaller(row + count, num_rows);
    if (row >= end) return;
    if (last_piece() || block_scaled(*gemm)) {
      scale_any(end);
    } else if (piece == 0) {
      scale_plain<true>(end);
    } else {
      scale_plain<false>(end);
    }
    row = end;
  }

  // Rows [row, end): a piece before the last, one activation scale a row.
  template <bool kFirst>
  QD_HD void scale_plain(int64_t end) const {
    const F scale0 = scale[0], scale1 = scale[1];
    const float* from = sums + row * kPanelRows;
    float* to = totals + row * kPanelRows;
    for (int64_t count = end - row; count > 0; --count, from += kPanelRows, to += kPanelRows) {
      S::store(to, S::fma(scale0, S::load(from), kFirst ? S::zero() : S::load(to)));
      S::store(to + kBlockRows,
               S::fma(scale1, S::load(from + kBlockRows), kFirst ? S::zero() : S::load(to + kBlockRows)));
    }
  }

  // Rows [row, end) of the last piece, or with block scales.
  __attribute__((noinline)) void scale_any(int64_t end) const {
    const int64_t middle = smaller(end, tokens.height);
    if (row < middle) scale_rows_of_tile(row, middle, tokens.first + tokens.row(tile));
    const int64_t from = row < tokens.height ? tokens.height : row;
    if (from < end) scale_rows_of_tile(from, end, tokens.first + tokens.row(tile + 1) - tokens.height);
  }

  // Rows [from, end) of one token tile; row r is slot first_slot + r.
  QD_HD void scale_rows_of_tile(int64_t from, int64_t end, int64_t first_slot) const {
    for (int half = 0; half < kHalves && exists(half); ++half) {
      if (block_scaled(*gemm)) {
        for (int64_t r = from; r < end; ++r) scale_block(r, first_slot + r, half);
      } else {
        finish_rows(from, end, first_slot, half);
      }
    }
  }

  QD_HD const float* sum_at(int64_t r, int half) const { return sums + r * kPanelRows + half * kBlockRows; }
  QD_HD float* total_at(int64_t r, int half) const { return totals + r * kPanelRows + half * kBlockRows; }

  QD_HD void finish_rows(int64_t from, int64_t end, int64_t first_slot, int half) const {
    // Copies: for the compiler a store could change the originals.
    const W4A8Gemm problem = *gemm;
    const W4Matrix weights = problem.weights[expert];
    const float* bias = problem.bias != nullptr ? problem.bias[expert] : nullptr;
    const int64_t n = (block + half) * kBlockRows;
    const F factor = scale[half];
    const bool first = piece == 0;
    const float* sum = sum_at(from, half);
    const float* total_before = total_at(from, half);
    float* out = problem.out + (first_slot + from) * problem.n;
    for (int64_t r = from; r < end; ++r, sum += kPanelRows, total_before += kPanelRows, out += problem.n) {
      const float act_scale = problem.act_scale[source_of(problem.rows, first_slot + r)];
      F total = S::load(sum);
      if constexpr (!kVllm) total = S::fma(factor, total, first ? S::zero() : S::load(total_before));
      const F y = result<S, kVllm>(weights, n, act_scale, total);
      store_rows<S>(out, bias, problem.n, n, y, [](F v) { return S::number_or_nan(v, v); });
    }
  }

  // The product with the block scale is rounded, so the sum is brought into the contract's unit first.
  QD_HD void scale_block(int64_t r, int64_t slot, int half) const {
    const int64_t source = source_of(gemm->rows, slot);
    const float factor = gemm->block_scale.of(expert, source, piece * axis.piece / kScaleBlock);
    const F sum = S::mul(S::set(factor), S::mul(S::load(sum_at(r, half)), S::set(numerics::kExactUnit)));
    const F total = S::fma(scale[half], sum, piece == 0 ? S::zero() : S::load(total_at(r, half)));
    if (!last_piece()) return S::store(total_at(r, half), total);
    const int64_t n = (block + half) * kBlockRows;
    store_result<S>(*gemm, expert, slot, n, result<S, false>(gemm->weights[expert], n, 1.0f, total));
  }
};

// Sums of kTiles token tiles x two weight tiles, zeroed, or moved between the tiles and rows of 32 floats.
template <class T, int kTiles>
QD_HD void zero_sums() {
  T::template zero<kSum00>();
  T::template zero<kSum01>();
  if constexpr (kTiles == 2) {
    T::template zero<kSum10>();
    T::template zero<kSum11>();
  }
}

constexpr int64_t kSumStride = kPanelRows * 4;  // bytes

template <class T, int kTiles>
QD_HD void load_sums(const float* from, int64_t height) {
  T::template load<kSum00>(from, kSumStride);
  T::template load<kSum01>(from + kBlockRows, kSumStride);
  if constexpr (kTiles == 2) {
    T::template load<kSum10>(from + height * kPanelRows, kSumStride);
    T::template load<kSum11>(from + height * kPanelRows + kBlockRows, kSumStride);
  }
}

template <class T, int kTiles>
QD_HD void store_sums(float* to, int64_t height) {
  T::template store<kSum00>(to, kSumStride);
  T::template store<kSum01>(to + kBlockRows, kSumStride);
  if constexpr (kTiles == 2) {
    T::template store<kSum10>(to + height * kPanelRows, kSumStride);
    T::template store<kSum11>(to + height * kPanelRows + kBlockRows, kSumStride);
  }
}

// A share of one expert's output rows, all its tokens.
template <class T, bool kVllm>
struct TileProduct {
  const W4A8Gemm& gemm;
  const GemmShare& share;
  const int64_t token_floats;  // see packed_tokens
  const KAxis axis;
  const TokenTiles tokens;
  PieceDecoder<kVllm> decoder;  // of the piece after the one at hand
  SumScaler<kVllm> scaler;      // of the block before the one at hand
  uint16_t* pieces[2];
  float* totals;
  int64_t tile_first = 0;  // the tokens at hand
  int64_t tile_last = 0;
  int64_t units_a_step = 0;

  TileProduct(const W4A8Gemm& problem, const GemmShare& part, int64_t floats_of_token)
      : gemm(problem),
        share(part),
        token_floats(floats_of_token),
        axis(tile_axis<kVllm>(problem)),
        tokens(token_tiles(problem.rows, part.expert)),
        decoder{&problem, &problem.weights[part.expert], axis},
        scaler{&problem, part.expert, axis, tokens, part.scratch + 2 * kPieceFloats},
        pieces{reinterpret_cast<uint16_t*>(part.scratch), reinterpret_cast<uint16_t*>(part.scratch + kPieceFloats)},
        totals(part.scratch + 2 * kPieceFloats + kSumFloats) {}

  void run() {
    if (tokens.count == 0) return;
    T::configure(tokens.height);
    const int64_t at_once = kTokensAtOnce / tokens.height;
    const int64_t turns = (tokens.count + at_once - 1) / at_once;
    for (int64_t turn = 0; turn < turns; ++turn) {
      tile_first = tokens.count * turn / turns;
      tile_last = tokens.count * (turn + 1) / turns;
      run_tokens();
    }
    T::release();
  }

  void run_tokens() {
    int current = 0;
    decoder.begin(share.panel_begin, 0, pieces[current]);
    decoder.advance(decoder.num_units());
    for (int64_t panel = share.panel_begin; panel < share.panel_end; ++panel) {
      for (int64_t piece = 0; piece < axis.num_pieces; ++piece) {
        begin_next(panel, piece, pieces[1 - current]);
        run_piece(panel, piece, pieces[current]);
        current = 1 - current;
      }
    }
    scaler.advance(scaler.num_rows);
  }

  // The decoder moves on to the piece that follows, if there is one; it finishes within the steps of this one.
  void begin_next(int64_t panel, int64_t piece, uint16_t* to) {
    if (piece + 1 < axis.num_pieces) {
      decoder.begin(panel, piece + 1, to);
    } else if (panel + 1 < share.panel_end) {
      decoder.begin(panel + 1, 0, to);
    }
    const int64_t steps = (tile_last - tile_first + 1) / 2 * axis.steps(piece);
    units_a_step = (decoder.num_units() + steps - 1) / steps;
  }

  void run_piece(int64_t panel, int64_t piece, const uint16_t* weights) {
    int64_t tile = tile_first;
    for (; tile + 2 <= tile_last; tile += 2) run_block<2>(panel, piece, tile, weights);
    if (tile < tile_last) run_block<1>(panel, piece, tile, weights);
  }

  // Whether the sums of `vllm` stay in their tiles over all of k: there is one block.
  QD_HD bool resident() const { return tile_last - tile_first <= 2; }

  template <int kTiles>
  __attribute__((noinline)) void run_block(int64_t panel, int64_t piece, int64_t tile, const uint16_t* weights) {
    float* block_totals = totals + (tile - tile_first) * tokens.height * kPanelRows;
    if (!kVllm || piece == 0) {
      zero_sums<T, kTiles>();
    } else if (!resident()) {
      load_sums<T, kTiles>(block_totals, tokens.height);
    }
    run_steps<kTiles>(piece, tile, weights);
    if (!kVllm || piece + 1 == axis.num_pieces) {
      store_sums<T, kTiles>(share.scratch + 2 * kPieceFloats, tokens.height);
      scaler.begin(tile, kTiles, panel, piece, block_totals);
    } else if (!resident()) {
      store_sums<T, kTiles>(block_totals, tokens.height);
    }
  }

  template <int kTiles>
  QD_HD void run_steps(int64_t piece, int64_t tile, const uint16_t* weights) {
    const int64_t steps = axis.steps(piece);
    const int64_t rows_a_step = (scaler.num_rows - scaler.row + steps - 1) / steps;
    const int64_t step_values = tokens.rows * kStep;
    const uint16_t* act = packed_tokens(share.packed, tokens, token_floats) + piece * axis.piece / kStep * step_values;
    const uint16_t* act0 = act + tokens.row(tile) * kStep;
    const uint16_t* act1 = act + tokens.row(tile + 1) * kStep;
    for (int64_t step = 0; step < steps; ++step) {
      T::template load<kWeights0>(weights, kTileRowBytes);
      T::template load<kTokens0>(act0, kTileRowBytes);
      T::template dot<kSum00, kTokens0, kWeights0>();
      T::template load<kWeights1>(weights + kStepsAtOnce * kWeightTile, kTileRowBytes);
      T::template dot<kSum01, kTokens0, kWeights1>();
      if constexpr (kTiles == 2) {
        T::template load<kTokens1>(act1, kTileRowBytes);
        T::template dot<kSum10, kTokens1, kWeights0>();
        T::template dot<kSum11, kTokens1, kWeights1>();
      }
      decoder.advance(units_a_step);
      scaler.advance(rows_a_step);
      weights += kWeightTile;
      act0 += step_values;
      act1 += step_values;
    }
  }
};

template <class T>
void tile_gemm_share(const W4A8Gemm& gemm, const GemmShare& share, int64_t token_floats) {
  if (gemm.numerics == Numerics::kVllm) return TileProduct<T, true>(gemm, share, token_floats).run();
  TileProduct<T, false>(gemm, share, token_floats).run();
}

}  // namespace
}  // namespace quadrille::kernels::cpu
