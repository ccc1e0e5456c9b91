// SPDX-License-Identifier: Apache-2.0
// The W4A8 product by vdpbf16ps: one chain a group (`vllm`: one over all of K) for a tile of tokens, weights decoded in
// registers. The instruction waits six clocks for its own sum, so few tokens take several row blocks and several
// groups at once; that changes who waits, not a chain.
#pragma once

#include "kernels/cpu/body/w4a8_weight.h"
#include "kernels/cpu/vdpbf16/pairs.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kPairTileTokens = 12;  // 12 chains, 12 sums and the decoder fill the 32 registers

// What one call computes: kRowBlocks blocks of 16 rows, kGroups groups at a time, kTokens tokens.
template <int kRowBlocks, int kGroups, int kTokens>
struct Pass {
  Simd::F of[kRowBlocks][kGroups][kTokens];
};

// `lines` lines of each group; the groups lie `group_lines` apart. act [4 pairs of each line][kTokens]. Meanwhile the
// lines that lie `ahead` further are fetched in the order of memory: groups at once are short streams, which the
// processor's own prefetch does not follow.
template <class Pairs, int R, int G, int T>
QD_HD void add_lines(const Pairs (&decoder)[R], const uint32_t* const (&codes)[R], const uint32_t* act,
                     int64_t group_lines, int64_t lines, int64_t ahead, Pass<R, G, T>& acc) {
  for (int64_t line = 0; line < lines; ++line) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const int64_t at = g * group_lines + line;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        Pair pairs[kLinePairs];
        _mm_prefetch(codes[r] + (ahead + line * G + g) * kBlockRows, _MM_HINT_T0);
        decoder[r].line(Simd::load_words(codes[r] + at * kBlockRows), pairs);
#pragma GCC unroll 4
        for (int j = 0; j < kLinePairs; ++j) {
          const uint32_t* tokens = act + (at * kLinePairs + j) * T;
#pragma GCC unroll 16
          for (int t = 0; t < T; ++t) acc.of[r][g][t] = dot(acc.of[r][g][t], pairs[j], tokens[t]);
        }
      }
    }
  }
}

// Where a tile of tokens meets row blocks.
struct PairTile {
  const W4A8Gemm& gemm;
  const W4Matrix& weights;
  KAxis axis;
  int64_t expert;
  int64_t first_slot;
  int64_t first_block;

  QD_HD float block_scale(int64_t token, int64_t piece) const {
    return gemm.block_scale.of(expert, source_of(gemm.rows, first_slot + token), piece * axis.piece / kScaleBlock);
  }
};

// total = fma(s_g, acc, total) for G pieces in ascending order; block scales multiply acc first, in the contract's
// unit.
template <int R, int G, int T>
QD_HD void add_groups(const PairTile& tile, int64_t piece, const Pass<R, G, T>& acc, Simd::F (&total)[R][T]) {
  using S = Simd;
  const bool blocks = block_scaled(tile.gemm);
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t group = tile.axis.group(piece + g);
      const S::F scale = load_group_scale<S>(tile.weights, tile.axis, tile.first_block + r, group);
      const S::F in_q = S::mul(scale, S::set(numerics::kExactUnit));
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        if (blocks) {
          const S::F sum = S::mul(acc.of[r][g][t], S::set(numerics::kExactUnit));
          total[r][t] = S::fma(scale, S::mul(S::set(tile.block_scale(t, piece + g)), sum), total[r][t]);
        } else {
          total[r][t] = S::fma(in_q, acc.of[r][g][t], total[r][t]);
        }
      }
    }
  }
}

template <int R, int G, int T>
QD_HD void clear(Pass<R, G, T>& acc) {
#pragma GCC unroll 64
  for (int i = 0; i < R * G * T; ++i) acc.of[i / (G * T)][i / T % G][i % T] = Simd::zero();
}

// kAhead pieces further are fetched. Pieces [piece, ...) as long as G of them are left, G > 1 of the full length;
// returns the next piece.
template <int R, int G, int kAhead, int T>
QD_HD int64_t exact_pieces(const PairTile& tile, int64_t piece, const uint32_t* const (&codes)[R], const uint32_t* act,
                           Simd::F (&total)[R][T]) {
  const ExactPairs decoder[R];
  const int64_t full = tile.axis.piece / 8;  // lines
  const int64_t end = G > 1 ? tile.axis.kp / tile.axis.piece : tile.axis.num_pieces;
  for (; piece + G <= end; piece += G) {
    // The last piece of one scale a channel may be shorter.
    const int64_t lines = G > 1 ? full : smaller(full, tile.axis.kp / 8 - piece * full);
    Pass<R, G, T> acc;
    clear(acc);
    const uint32_t* from[R];
    for (int r = 0; r < R; ++r) from[r] = codes[r] + piece * full * kBlockRows;
    add_lines<ExactPairs, R, G, T>(decoder, from, act + piece * full * kLinePairs * T, full, lines, kAhead * full, acc);
    add_groups<R, G, T>(tile, piece, acc, total);
  }
  return piece;
}

template <int R, int T>
QD_HD void vllm_chain(const PairTile& tile, const uint32_t* const (&codes)[R], const uint32_t* act,
                      Simd::F (&total)[R][T]) {
  Pass<R, 1, T> acc;
  clear(acc);
  VllmPairs decoder[R];
  const int64_t group_lines = tile.axis.num_groups == 1 ? tile.axis.kp / 8 : tile.axis.piece / 8;
  for (int64_t group = 0, first = 0; first < tile.axis.kp / 8; ++group, first += group_lines) {
    const uint32_t* from[R];
    for (int r = 0; r < R; ++r) {
      decoder[r].set_scale(load_scale<Simd, true>(tile.weights, tile.axis, tile.first_block + r, group));
      from[r] = codes[r] + first * kBlockRows;
    }
    const int64_t lines = smaller(group_lines, tile.axis.kp / 8 - first);
    add_lines<VllmPairs, R, 1, T>(decoder, from, act + first * kLinePairs * T, group_lines, lines, group_lines, acc);
  }
  for (int r = 0; r < R; ++r) {
    for (int t = 0; t < T; ++t) total[r][t] = acc.of[r][0][t];
  }
}

template <bool kVllm, int R, int G, int T>
__attribute__((noinline)) void pair_rows(const PairTile& tile, const uint32_t* act) {
  using S = Simd;
  const uint32_t* codes[R];
  S::F total[R][T];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    codes[r] = words_of<S>(tile.weights, tile.axis, tile.first_block + r);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) total[r][t] = S::zero();
  }
  if constexpr (kVllm) {
    vllm_chain<R, T>(tile, codes, act, total);
  } else {
    [[maybe_unused]] int64_t piece = exact_pieces<R, G, G, T>(tile, 0, codes, act, total);
    if constexpr (G > 2) piece = exact_pieces<R, 2, G, T>(tile, piece, codes, act, total);
    if constexpr (G > 1) exact_pieces<R, 1, G, T>(tile, piece, codes, act, total);
  }
  for (int t = 0; t < T; ++t) {
    const int64_t slot = tile.first_slot + t;
    const bool blocks = block_scaled(tile.gemm);
    const float act_scale = blocks ? 1.0f : tile.gemm.act_scale[source_of(tile.gemm.rows, slot)];
    for (int r = 0; r < R; ++r) {
      const int64_t row = (tile.first_block + r) * kBlockRows;
      store_result<S>(tile.gemm, tile.expert, slot, row, result<S, kVllm>(tile.weights, row, act_scale, total[r][t]));
    }
  }
}

// Row blocks and groups at once: about six chains. `vllm` has one chain a row, so it takes row blocks.
template <bool kVllm, int T>
struct AtOnce {
  static constexpr int kRowBlocks = kVllm && T <= 4 ? 2 : 1;
  static constexpr int kGroups = kVllm ? 1 : (T <= 2 ? 4 : (T <= 5 ? 2 : 1));
};

template <bool kVllm, int T>
QD_HD void pair_share(PairTile tile, const GemmShare& share) {
  using At = AtOnce<kVllm, T>;
  const auto* act = reinterpret_cast<const uint32_t*>(share.packed + tile.first_slot * tile.axis.kp);
  const int64_t end = smaller(share.panel_end * 2, (tile.gemm.n + kBlockRows - 1) / kBlockRows);
  tile.first_block = share.panel_begin * 2;
  for (; tile.first_block + At::kRowBlocks <= end; tile.first_block += At::kRowBlocks) {
    pair_rows<kVllm, At::kRowBlocks, At::kGroups, T>(tile, act);
  }
  if constexpr (At::kRowBlocks > 1) {
    for (; tile.first_block < end; ++tile.first_block) pair_rows<kVllm, 1, At::kGroups, T>(tile, act);
  }
}

// One tile of `tokens` tokens, 1 <= tokens <= kPairTileTokens.
template <bool kVllm, int T = 1>
void pair_tile(const PairTile& tile, const GemmShare& share, int64_t tokens) {
  if constexpr (T < kPairTileTokens) {
    if (tokens > T) return pair_tile<kVllm, T + 1>(tile, share, tokens);
  }
  pair_share<kVllm, T>(tile, share);
}

// Panel by panel, so that its weights come from the first cache for every tile but the first of a block.
template <bool kVllm>
void pair_gemm(const W4A8Gemm& gemm, const GemmShare& share) {
  const ExpertRows rows = expert_rows(gemm.rows, share.expert, kPairTileTokens);
  for (int64_t first = 0; first < rows.split.num_tiles; first += kBlockTiles) {
    const int64_t last = smaller(first + kBlockTiles, rows.split.num_tiles);
    const int64_t panels = rows.split.num_tiles == 1 ? share.panel_end - share.panel_begin : 1;
    GemmShare part = share;
    for (; part.panel_begin < share.panel_end; part.panel_begin += panels) {
      part.panel_end = part.panel_begin + panels;
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t slot = rows.tile_slot(tile);
        const PairTile where{gemm, gemm.weights[share.expert], k_axis(gemm), share.expert, slot, 0};
        pair_tile<kVllm>(where, part, rows.tile_slot(tile + 1) - slot);
      }
    }
  }
}

void pair_gemm_share(const W4A8Gemm& gemm, const GemmShare& share) {
  if (gemm.numerics == Numerics::kVllm) return pair_gemm<true>(gemm, share);
  pair_gemm<false>(gemm, share);
}

// One tile of token rows as pairs [kp / 2][tokens], those of a line as in pairs.h; zero behind k. A tile has the place
// of its fp32 form and uses half of it.
void pack_pairs_tile(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  const ExpertRows rows = expert_rows(gemm.rows, expert, kPairTileTokens);
  const int64_t kp = round_up(gemm.k, kStep);
  const int64_t first = rows.tile_slot(tile);
  const int64_t tokens = rows.tile_slot(tile + 1) - first;
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* codes = gemm.act + source_of(gemm.rows, first + t) * gemm.k;
    auto* out = reinterpret_cast<uint32_t*>(packed + first * kp) + t;
    for (int64_t k = 0; k < kp; k += kStep, codes += kStep, out += kStep / 2 * tokens) {
      alignas(64) uint32_t pairs[kStep / 2];
      alignas(32) uint8_t tail[kStep] = {};
      const uint8_t* from = codes;
      if (gemm.k - k < kStep) {
        for (int64_t i = 0; i < gemm.k - k; ++i) tail[i] = codes[i];
        from = tail;
      }
      _mm512_store_si512(pairs, pairs_of_step(Simd::load_e4m3(from), Simd::load_e4m3(from + 16)));
#pragma GCC unroll 16
      for (int i = 0; i < kStep / 2; ++i) out[i * tokens] = pairs[i];
    }
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
