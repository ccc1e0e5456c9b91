// SPDX-License-Identifier: Apache-2.0
// The `exact` W4A8 product by integer digits: the fma chains of a k32 step, replaced by integer dot products where no
// partial sum of the chains rounds. An activation is an integer X of units 2^-9, |X| <= 448 * 512 < 2^18, in three
// signed digits of base 256; a weight is the unsigned byte q + 8.
//   sum over the step of q * X = -8 * sum(X) + sum over d of 256^d * sum of (q + 8) * digit_d(X)
// Where 8 * sum |X| <= 2^24 over the even and over the odd positions, every partial sum of both chains is an integer of
// at most 24 bits (in that unit), so the chains are exact, e + o is the integer rounded once, and so is the conversion
// to fp32. Neither gives -0: the chains start at +0. A tile that breaks the bound, or holds a NaN, takes the fma form.
#pragma once

#include "kernels/cpu/body/w4a8_weight.h"

namespace quadrille::kernels::cpu {
namespace {

// A record of kDigitWords words: [digit][even, odd][4 words of codes] of four digits as bytes, then -8 * sum(X).
// The vocabulary D fills and reads it (avx512/digits.h, avx2/digits.h).
constexpr int kDigitStart = 24;

// Largest sum of |X| over the 16 even or odd positions of a step that keeps the chains exact.
constexpr int32_t kDigitBound = (1 << 24) / 8;

template <class D>
bool pack_digit_tile(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  const ExpertRows rows = expert_rows(gemm.rows, expert, D::S::kTileTokens);
  const int64_t kp = round_up(gemm.k, kStep);
  const int64_t first = rows.tile_slot(tile);
  const int64_t tokens = rows.tile_slot(tile + 1) - first;
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* codes = gemm.act + source_of(gemm.rows, first + t) * gemm.k;
    int32_t* record = reinterpret_cast<int32_t*>(packed + first * kp) + t * kDigitWords;
    for (int64_t k = 0; k < kp; k += kStep, codes += kStep, record += tokens * kDigitWords) {
      alignas(32) uint8_t tail[kStep] = {};
      const uint8_t* from = codes;
      if (gemm.k - k < kStep) {
        for (int64_t i = 0; i < gemm.k - k; ++i) tail[i] = codes[i];
        from = tail;
      }
      if (!D::pack_step(from, record)) return false;
    }
  }
  return true;
}

// One k32 step of V vectors of rows and T tokens: acc = acc + (e + o), in units of 2^-9.
template <class D, int V, int T>
QD_HD void digits_step(const uint32_t* const (&codes)[V], const int32_t* record, typename D::S::F (&acc)[V][T]) {
  using S = typename D::S;
  using I = typename S::I;
  I sum[V][T][3];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      sum[v][t][0] = D::first(record[t * kDigitWords + kDigitStart]);
      sum[v][t][1] = sum[v][t][2] = S::set_i(0);
    }
  }
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    I weights[V][2];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) D::split(S::load_words(codes[v] + w * kBlockRows), weights[v]);
#pragma GCC unroll 8
    for (int part = 0; part < 2 * 3; ++part) {  // parity, digit
      const int parity = part / 3, digit = part % 3;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const I digits = S::set_i(record[t * kDigitWords + digit * 8 + parity * 4 + w]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[v][t][digit] = D::dot(sum[v][t][digit], weights[v][parity], digits);
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const I all = D::total(sum[v][t], record[t * kDigitWords + kDigitStart]);
      acc[v][t] = S::add(acc[v][t], D::to_float(all));
    }
  }
}

// V vectors of rows against T of the `tokens` tokens of a tile; `record` is the first step's of the first of them.
template <class D, int V, int T>
__attribute__((noinline)) void digits_rows(const W4A8Gemm& gemm, const GemmShare& share, const int32_t* record,
                                           int64_t tokens, int64_t first_slot, int64_t vector) {
  using S = typename D::S;
  using F = typename S::F;
  const KAxis axis = k_axis(gemm);
  const W4Matrix& weights = gemm.weights[share.expert];
  const uint32_t* codes[V];
  F acc[V][T], total[V][T];
  for (int v = 0; v < V; ++v) {
    codes[v] = words_of<S>(weights, axis, vector + v);
    for (int t = 0; t < T; ++t) acc[v][t] = total[v][t] = S::zero();
  }
  for (int64_t piece = 0; piece < axis.num_pieces; ++piece) {
    for (int64_t step = axis.steps(piece); step > 0; --step) {
      for (int v = 0; v < V; v += Rows<S>::kPerBlock) D::prefetch(codes[v]);
      digits_step<D, V, T>(codes, record, acc);
      for (int v = 0; v < V; ++v) codes[v] += 4 * kBlockRows;
      record += tokens * kDigitWords;
    }
    for (int v = 0; v < V; ++v) {
      const F scale = load_scale<S, false>(weights, axis, vector + v, axis.group(piece));
      for (int t = 0; t < T; ++t) {
        // The sum in q, exactly: the scale has no room for another 2^-9 where it is subnormal.
        total[v][t] = S::fma(scale, S::mul(acc[v][t], S::set(numerics::kExactUnit)), total[v][t]);
        acc[v][t] = S::zero();
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    const int64_t slot = first_slot + t;
    const float act_scale = gemm.act_scale[source_of(gemm.rows, slot)];
    for (int v = 0; v < V; ++v) {
      const int64_t row = (vector + v) * S::kLanes;
      store_result<S>(gemm, share.expert, slot, row, result<S, false>(weights, row, act_scale, total[v][t]));
    }
  }
}

template <class D, int T>
void digits_share(const W4A8Gemm& gemm, const GemmShare& share, const int32_t* record, int64_t tokens, int64_t slot) {
  using S = typename D::S;
  constexpr int kVectors = D::vectors(T);
  int64_t vector = share.panel_begin * Rows<S>::kPerPanel;
  const int64_t end = smaller(share.panel_end * Rows<S>::kPerPanel, Rows<S>::count(gemm.n));
  for (; vector + kVectors <= end; vector += kVectors) {
    digits_rows<D, kVectors, T>(gemm, share, record, tokens, slot, vector);
  }
  if constexpr (kVectors > 1) {
    for (; vector < end; ++vector) digits_rows<D, 1, T>(gemm, share, record, tokens, slot, vector);
  }
}

template <class D, int T = 1>
QD_HD void digits_tokens(const W4A8Gemm& gemm, const GemmShare& share, const int32_t* record, int64_t tokens,
                         int64_t slot, int64_t count) {
  if constexpr (T < D::kTokens) {
    if (count > T) return digits_tokens<D, T + 1>(gemm, share, record, tokens, slot, count);
  }
  digits_share<D, T>(gemm, share, record, tokens, slot);
}

// A tile in pieces of nearly equal size, at most D::kTokens tokens at once.
template <class D>
void digits_tile(const W4A8Gemm& gemm, const GemmShare& share, int64_t slot, int64_t tokens) {
  const int32_t* records = reinterpret_cast<const int32_t*>(share.packed + slot * round_up(gemm.k, kStep));
  const TileSplit split{tokens, (tokens + D::kTokens - 1) / D::kTokens};
  for (int64_t piece = 0; piece < split.num_tiles; ++piece) {
    const int64_t first = tile_begin(split, piece);
    const int64_t count = tile_begin(split, piece + 1) - first;
    digits_tokens<D>(gemm, share, records + first * kDigitWords, tokens, slot + first, count);
  }
}

template <class D>
constexpr DigitParts digit_parts() {
  return DigitParts{D::kMostRows, pack_digit_tile<D>, digits_tile<D>};
}

}  // namespace
}  // namespace quadrille::kernels::cpu
