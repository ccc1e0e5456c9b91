// SPDX-License-Identifier: Apache-2.0
// The reordered 4-bit layout of vLLM's CUTLASS W4A8 kernels, found by measurement: tiles of 16 n x 32 k, all n tiles of
// one k tile before the next, 512 nibbles a tile. Used to compare prepared bytes and to exchange them.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kW4VllmReorderedTag{"w4_vllm_reordered", 1};

// N a multiple of 16, K of 32. offset() counts nibbles, low nibble of a byte (and of a word) first.
// Bits p0..p8 of a place in a tile: k = p0 + 2 p1 + 16 p3 + 4 p4 + 8 p5, n = 8 p2 + p6 + 2 p7 + 4 p8.
struct W4VllmReordered {
  int64_t n;
  int64_t k;

  static constexpr int64_t kTileN = 16;
  static constexpr int64_t kTileK = 32;
  static constexpr int64_t kTileNibbles = kTileN * kTileK;

  QD_HD constexpr int64_t num_words() const { return n * k / 8; }
  QD_HD constexpr int64_t n_tiles() const { return n / kTileN; }

  QD_HD constexpr int64_t offset(int64_t row, int64_t column) const {
    const int64_t i = row % kTileN;
    const int64_t j = column % kTileK;
    const int64_t place = (j & 3) | (i >> 3 & 1) << 2 | (j >> 4 & 1) << 3 | (j >> 2 & 3) << 4 | (i & 7) << 6;
    return (column / kTileK * n_tiles() + row / kTileN) * kTileNibbles + place;
  }
  QD_HD constexpr RowColumn at(int64_t nibble_offset) const {
    const int64_t tile = nibble_offset / kTileNibbles;
    const int64_t p = nibble_offset % kTileNibbles;
    const int64_t j = (p & 3) | (p >> 4 & 3) << 2 | (p >> 3 & 1) << 4;
    const int64_t i = (p >> 6 & 7) | (p >> 2 & 1) << 3;
    return {tile % n_tiles() * kTileN + i, tile / n_tiles() * kTileK + j};
  }
};

// Canonical word order -> reordered words and back; nibble values are carried over unchanged (their encoding is
// int4.h's matter). words: [n, k/8] row-major; reordered: num_words().
QD_HD constexpr void export_vllm_reordered(const W4VllmReordered& map, const uint32_t* words, uint32_t* reordered) {
  for (int64_t w = 0; w < map.num_words(); ++w) {
    uint32_t word = 0;
    for (int64_t j = 0; j < 8; ++j) {
      const RowColumn from = map.at(w * 8 + j);
      word |= (words[from.n * (map.k / 8) + from.k / 8] >> (4 * (from.k % 8)) & 15u) << (4 * j);
    }
    reordered[w] = word;
  }
}
QD_HD constexpr void import_vllm_reordered(const W4VllmReordered& map, const uint32_t* reordered, uint32_t* words) {
  for (int64_t w = 0; w < map.num_words(); ++w) {
    uint32_t word = 0;
    for (int64_t j = 0; j < 8; ++j) {
      const int64_t from = map.offset(w / (map.k / 8), w % (map.k / 8) * 8 + j);
      word |= (reordered[from / 8] >> (4 * (from % 8)) & 15u) << (4 * j);
    }
    words[w] = word;
  }
}

}  // namespace quadrille::layout
