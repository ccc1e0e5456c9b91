// SPDX-License-Identifier: Apache-2.0
// Integers of attention: which key blocks a query sees, how those of a single token are spread over CTAs, which query
// head stands in a row of a tile. Shared by kernels, launches and the CPU's tests.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/kv_page.h"

namespace quadrille::kernels::cuda {

inline constexpr int kKeyBlock = 64;  // positions of a page
static_assert(kKeyBlock == layout::kPagePositions);
inline constexpr int kPackedHeads = 16;  // query heads of one KV head that share a tile, at most
inline constexpr float kLog2E = 1.44269504f;

struct SeenKeys {
  int64_t first;  // position
  int64_t last;   // below first: none
};
QD_HD constexpr SeenKeys seen_keys(int64_t position, int64_t window) {
  if (position < 0) return {0, -1};
  return {window > 0 && position - window + 1 > 0 ? position - window + 1 : 0, position};
}

// Blocks [first, first + count).
struct BlockRange {
  int64_t first;
  int64_t count;
};
QD_HD constexpr BlockRange seen_blocks(const SeenKeys& seen) {
  if (seen.last < seen.first) return {0, 0};
  const int64_t first = seen.first / kKeyBlock;
  return {first, seen.last / kKeyBlock - first + 1};
}

// What a query sees of one block: keys [first, last] of its 64; last < first: none.
struct SeenPart {
  int first;  // 0..64
  int last;   // -1..63
};
QD_HD constexpr SeenPart seen_in_block(const SeenKeys& seen, int64_t block) {
  const int64_t first = seen.first - block * kKeyBlock;
  const int64_t last = seen.last - block * kKeyBlock;
  return {static_cast<int>(first < 0           ? 0
                           : first < kKeyBlock ? first
                                               : kKeyBlock),
          static_cast<int>(last < -1              ? -1
                           : last < kKeyBlock - 1 ? last
                                                  : kKeyBlock - 1)};
}

// Blocks of a CTA where `count` of them are spread over at most `parts` CTAs; `count` or more: one CTA takes all and
// writes the result itself. `least`: blocks that a CTA takes at once.
QD_HD constexpr uint32_t blocks_of_part(uint32_t count, uint32_t parts, uint32_t least) {
  const uint32_t even = (count + parts - 1) / parts;
  return even > least ? even : least;
}

// Row of a tile: token `row / packed` of the tile, head `row % packed` of those that the tile has of the KV head.
struct HeadTiles {
  int64_t num_heads;     // of the rank
  int64_t heads_per_kv;  // of the model
  int64_t head_phase;    // query head i reads KV head (head_phase + i) / heads_per_kv

  QD_HD constexpr int64_t packed() const { return heads_per_kv < kPackedHeads ? heads_per_kv : kPackedHeads; }
  // Tiles of the heads of one KV head.
  QD_HD constexpr int64_t tiles() const { return (heads_per_kv + kPackedHeads - 1) / kPackedHeads; }
  // The rank's query head in place `place` of head tile `tile` of KV head `kv`; -1: none.
  QD_HD constexpr int64_t head_at(int64_t kv, int64_t tile, int64_t place) const {
    const int64_t within = tile * kPackedHeads + place;
    const int64_t head = kv * heads_per_kv + within - head_phase;
    return place < packed() && within < heads_per_kv && head >= 0 && head < num_heads ? head : -1;
  }
};

// --- Fragments: the byte, from the start of a tile's keys or values, whose address a lane gives to ldmatrix.x4 ---

// Keys: dimensions 32 chunk .. + 31 of keys 8 j .. + 7; register p receives piece p.
QD_HD constexpr int key_piece_at(int j, int chunk, int lane) {
  return chunk * 4096 + j * 512 + lane % 8 * 64 + (lane / 8 ^ lane / 2 % 4) * 16;
}
// Values, transposed: positions 16 step .. + 7 of dimensions 32 chunk + 8 piece .. + 7 in register 0, positions
// 16 step + 8 .. + 15 in 1; 2 and 3: the same of the next piece. piece: even.
QD_HD constexpr int value_piece_at(int step, int chunk, int piece, int lane) {
  return chunk * 4096 + step * 1024 + lane % 16 * 64 + (piece ^ lane / 16 ^ lane / 2 % 4) * 16;
}

// Floats of a partial result: sums of padded_dim dimensions, then maximum and sum of weights, padding.
QD_HD constexpr int64_t partial_pitch(int64_t padded_dim) {
  return padded_dim + 4;
}

}  // namespace quadrille::kernels::cuda
