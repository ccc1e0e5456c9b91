// SPDX-License-Identifier: Apache-2.0
// What both GEMM bodies share: the geometry of blocks, panels and tiles, and the dispatch over the tokens of a tile.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/cpu/isa_parts.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kBlockRows = 16;  // rows of a layout block (layout/w4_lanes16.h, layout/bf16_lanes16.h)

// Vectors of rows: a block of 16 rows is 16 / kLanes vectors, numbered through the matrix.
template <class S>
struct Rows {
  static constexpr int kPerBlock = kBlockRows / S::kLanes;
  static constexpr int kPerPanel = kPanelRows / S::kLanes;
  static constexpr int kTilesPerPanel = kPerPanel / S::kTileVectors;

  QD_HD static int64_t block(int64_t vector) { return vector / kPerBlock; }
  QD_HD static int64_t lane(int64_t vector) { return vector % kPerBlock * S::kLanes; }
  QD_HD static int64_t count(int64_t n) { return (n + kBlockRows - 1) / kBlockRows * kPerBlock; }
};

QD_HD int64_t round_up(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

QD_HD int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The rows of one expert as slots and tiles.
struct ExpertRows {
  int64_t first = 0;  // slot
  TileSplit split;

  QD_HD int64_t tile_slot(int64_t tile) const { return first + tile_begin(split, tile); }
};

QD_HD ExpertRows expert_rows(const GroupedRows& rows, int64_t expert, int tile_tokens) {
  ExpertRows result;
  result.first = rows.offsets[expert];
  result.split.rows = rows.offsets[expert + 1] - result.first;
  result.split.num_tiles = (result.split.rows + tile_tokens - 1) / tile_tokens;
  return result;
}

QD_HD int64_t source_of(const GroupedRows& rows, int64_t slot) {
  return rows.source_row != nullptr ? rows.source_row[slot] : slot;
}

// One vector of rows of one slot: y, + bias, only the rows that exist. `finish` makes the stored value of the sum.
template <class S, typename Finish>
QD_HD void store_rows(float* out, const float* bias, int64_t n, int64_t row, typename S::F y, const Finish& finish) {
  const int64_t count = n - row;
  if (count >= S::kLanes) {
    if (bias != nullptr) y = S::add(y, S::load(bias + row));
    S::store(out + row, finish(y));
  } else if (count > 0) {
    if (bias != nullptr) y = S::add(y, S::load_part(bias + row, count));
    S::store_part(out + row, finish(y), count);
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
