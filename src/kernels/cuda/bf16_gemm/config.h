// SPDX-License-Identifier: Apache-2.0
// The tiles of the dense bf16 product, the closed list of them, and the maps between rows of a tile and features.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/api/device_decoder_problems.h"

namespace quadrille::kernels::cuda {

inline constexpr int kStageK = 64;      // k of a stage: rows of 128 bytes
inline constexpr int kPieceK = 256;     // k of a piece: its sum begins at +0, pieces are added in ascending order
inline constexpr int kTileSlots = 128;  // weight rows of a tile
static_assert(kPieceK % kStageK == 0);

// A warp has 16 * kRowTiles tokens and 32 weight rows.
template <int TokenWarps, int RowTiles, int Stages>
struct DenseTile {
  static constexpr int kTokenWarps = TokenWarps;
  static constexpr int kRowTiles = RowTiles;
  static constexpr int kStages = Stages;
  static constexpr int kWarps = TokenWarps * (kTileSlots / 32);
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTokens = TokenWarps * RowTiles * 16;
  static constexpr int kRowsAtOnce = kThreads / 8;          // rows of 128 bytes that all threads copy at once
  static constexpr int kTokenRows = kTokens / kRowsAtOnce;  // rows of a stage that a thread copies a part of
  static constexpr int kWeightRows = kTileSlots / kRowsAtOnce;
  static constexpr int kWeightsAt = kTokens * 128;
  static constexpr int kStageBytes = (kTokens + kTileSlots) * 128;
  static constexpr int kSharedBytes = Stages * kStageBytes;
  static_assert(kTokens % kRowsAtOnce == 0 && kTileSlots % kRowsAtOnce == 0);
};
using DenseTile16 = DenseTile<1, 1, 5>;
using DenseTile64 = DenseTile<1, 4, 4>;
using DenseTile128 = DenseTile<2, 4, 4>;

// Weight row of slot `slot` (0..127) of feature tile `tile`; `rows` or more: none. Slot 32 w + 8 j + c is column c of
// tensor-core tile j of feature warp w; a thread that holds columns 2t and 2t + 1 of four tiles then has neighbours:
// eight features from 8 t on, or gate and up of four channels from 4 t on.
QD_HD constexpr int64_t row_of_slot(int64_t tile, int64_t slot, bool gated, int64_t n) {
  const int64_t warp = slot / 32, j = slot % 32 / 8, c = slot % 8;
  if (!gated) return tile * kTileSlots + 32 * warp + 4 * c + j;
  const int64_t channel = tile * (kTileSlots / 2) + 16 * warp + 2 * c + j % 2;
  if (channel >= n / 2) return n;
  return channel + (j < 2 ? 0 : n / 2);
}
// First feature (channel) of thread t of feature warp `warp`.
QD_HD constexpr int64_t first_feature(int64_t tile, int64_t warp, int64_t t, bool gated) {
  return gated ? tile * (kTileSlots / 2) + 16 * warp + 4 * t : tile * kTileSlots + 32 * warp + 8 * t;
}

// Place of 16-byte piece `piece` of row `row` of a stage: odd rows have the halves of their 128 bytes swapped, so that
// eight lanes that read 64 bytes of two neighbouring rows meet every bank once.
QD_HD constexpr int stage_place(int row, int piece) {
  return row * 128 + (piece ^ (row % 2 * 4)) * 16;
}

}  // namespace quadrille::kernels::cuda
