// SPDX-License-Identifier: Apache-2.0
// The integer form of the `vllm` product over a share of one expert's output rows: one or two tokens vector by vector,
// more of them in blocks that share decoded bytes.
#pragma once

#include "kernels/cpu/body/w4a8_vllm.h"

namespace quadrille::kernels::cpu {
namespace {

// All steps of all these tokens are marked: no use in integer sums.
QD_HD bool all_marked(const VllmRecord* records, int64_t tokens, int64_t steps) {
  uint32_t marked = (1u << steps) - 1;
  for (int64_t m = 0; m < tokens; ++m) marked &= records[m].marked;
  return marked == (1u << steps) - 1;
}

template <class S>
__attribute__((noinline)) void block_marked(const VllmChains<S>& chains, const VllmWeights<S>& weights,
                                            const VllmTokens& tokens, int64_t count) {
  for (int64_t m = 0; m < count; ++m) {
    add_marked<S>(chains, weights, tokens.records[m].marked, nullptr, tokens.exact + m * kBlockDepth,
                  tokens.acc + m * S::kLanes);
  }
}

template <class S>
QD_HD void store_vllm(const W4A8Gemm& gemm, const GemmShare& share, int64_t vector, int64_t slot, const float* acc) {
  const float act_scale = gemm.act_scale[source_of(gemm.rows, slot)];
  const int64_t row = vector * S::kLanes;
  store_result<S>(gemm, share.expert, slot, row,
                  result<S, true>(gemm.weights[share.expert], row, act_scale, S::load(acc)));
}

template <class S, int T, int kTables>
__attribute__((noinline)) void vectors_at_once(const W4A8Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  const KAxis axis = k_axis(gemm);
  const VllmTile tile = vllm_tile(const_cast<float*>(share.packed), rows, 0, gemm.k);
  const int64_t end = smaller(share.panel_end * Rows<S>::kPerPanel, Rows<S>::count(gemm.n));
  for (int64_t vector = share.panel_begin * Rows<S>::kPerPanel; vector < end; ++vector) {
    alignas(64) float acc[T * S::kLanes] = {};
    for (int64_t block = 0; block < tile.blocks; ++block) {
      const VllmChains<S> chains{};
      const VllmWeights<S> weights = vllm_weights<S>(gemm.weights[share.expert], axis, vector, block);
      const VllmTokens tokens{tile.records(block), tile.exact(block), acc};
      if (all_marked(tokens.records, T, weights.steps)) {
        block_marked<S>(chains, weights, tokens, T);
      } else {
        block_at_once<S, T, kTables>(chains, weights, tokens);
      }
    }
    for (int64_t m = 0; m < T; ++m) store_vllm<S>(gemm, share, vector, rows.first + m, acc + m * S::kLanes);
  }
}

// Tokens of one tile, a few at a time as the registers allow.
template <class S>
QD_HD void tile_of_bytes(const VllmChains<S>& chains, const VllmWeights<S>& weights, const uint8_t* bytes,
                         VllmTokens tokens, int64_t count) {
  if (all_marked(tokens.records, count, weights.steps)) return block_marked<S>(chains, weights, tokens, count);
  while (count > 0) {
    const int64_t now = count == 7 ? 4 : smaller(count, 6);
    switch (now) {
      case 1:
        block_of_bytes<S, 1>(chains, weights, bytes, tokens);
        break;
      case 2:
        block_of_bytes<S, 2>(chains, weights, bytes, tokens);
        break;
      case 3:
        block_of_bytes<S, 3>(chains, weights, bytes, tokens);
        break;
      case 4:
        block_of_bytes<S, 4>(chains, weights, bytes, tokens);
        break;
      case 5:
        block_of_bytes<S, 5>(chains, weights, bytes, tokens);
        break;
      default:
        block_of_bytes<S, 6>(chains, weights, bytes, tokens);
    }
    count -= now;
    tokens = {tokens.records + now, tokens.exact + now * kBlockDepth, tokens.acc + now * S::kLanes};
  }
}

// Tiles [tile_first, tile_last) of the expert's rows against one panel of 32 output rows. Scratch: decoded bytes, fp32
// weights of marked steps, sums [vector][token of the block][kLanes].
template <class S, int kTables>
struct VllmPanel {
  static constexpr int64_t kBytes = kBlockDepth * S::kLanes;
  static constexpr int64_t kChainFloats = kBlockDepth * S::kLanes;
  static_assert(kBytes / 4 + kChainFloats + kPanelRows * kBlockTiles * 16 <= kGemmScratchFloats);
  const W4A8Gemm& gemm;
  const GemmShare& share;
  const KAxis& axis;
  const ExpertRows& rows;
  int64_t first_vector;
  int64_t num_vectors;
  int64_t tile_first;
  int64_t tile_last;

  QD_HD uint8_t* bytes() const { return reinterpret_cast<uint8_t*>(share.scratch + kChainFloats); }
  QD_HD int64_t first_slot() const { return rows.tile_slot(tile_first); }
  QD_HD int64_t tokens() const { return rows.tile_slot(tile_last) - first_slot(); }
  QD_HD float* sums(int64_t vector, int64_t slot) const {
    return share.scratch + kChainFloats + kBytes / 4 + (vector * tokens() + slot - first_slot()) * S::kLanes;
  }
  QD_HD VllmTile tile(int64_t index) const { return vllm_tile(const_cast<float*>(share.packed), rows, index, gemm.k); }

  // Steps of a block that two or more tokens need as fp32 chains.
  QD_HD uint32_t wanted_by_many(int64_t block) const {
    uint32_t once = 0, twice = 0;
    for (int64_t t = tile_first; t < tile_last; ++t) {
      const VllmTile at = tile(t);
      for (int64_t m = 0; m < at.tokens; ++m) {
        const uint32_t marked = at.records(block)[m].marked;
        twice |= once & marked;
        once |= marked;
      }
    }
    return twice;
  }

  void add_block(int64_t block) const {
    const uint32_t many = wanted_by_many(block);
    for (int64_t v = 0; v < num_vectors; ++v) {
      const VllmWeights<S> weights = vllm_weights<S>(gemm.weights[share.expert], axis, first_vector + v, block);
      decode_bytes<S, kTables>(weights, bytes());
      const VllmChains<S> chains{share.scratch, many};
      for (int64_t t = tile_first; t < tile_last; ++t) {
        const VllmTile at = tile(t);
        tile_of_bytes<S>(chains, weights, bytes(), {at.records(block), at.exact(block), sums(v, rows.tile_slot(t))},
                         at.tokens);
      }
    }
  }

  void run() const {
    for (float* p = sums(0, first_slot()); p < sums(num_vectors, first_slot()); p += S::kLanes) S::store(p, S::zero());
    for (int64_t block = 0; block < num_blocks(gemm.k); ++block) add_block(block);
    for (int64_t v = 0; v < num_vectors; ++v) {
      for (int64_t slot = first_slot(); slot < first_slot() + tokens(); ++slot) {
        store_vllm<S>(gemm, share, first_vector + v, slot, sums(v, slot));
      }
    }
  }
};

template <class S, int kTables>
void vllm_share(const W4A8Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  if (rows.split.rows == 1) return vectors_at_once<S, 1, kTables>(gemm, share, rows);
  if (rows.split.rows == 2) return vectors_at_once<S, 2, kTables>(gemm, share, rows);
  const KAxis axis = k_axis(gemm);
  for (int64_t tile = 0; tile < rows.split.num_tiles; tile += kBlockTiles) {
    for (int64_t panel = share.panel_begin; panel < share.panel_end; ++panel) {
      const int64_t first = panel * Rows<S>::kPerPanel;
      const int64_t vectors = smaller(Rows<S>::kPerPanel, Rows<S>::count(gemm.n) - first);
      const int64_t last = smaller(tile + kBlockTiles, rows.split.num_tiles);
      VllmPanel<S, kTables>{gemm, share, axis, rows, first, vectors, tile, last}.run();
    }
  }
}

template <class S>
void vllm_share(const W4A8Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  if (gemm.group_size == 32) return vllm_share<S, 4>(gemm, share, rows);
  if (gemm.group_size == 64) return vllm_share<S, 2>(gemm, share, rows);
  vllm_share<S, 1>(gemm, share, rows);
}

}  // namespace
}  // namespace quadrille::kernels::cpu
