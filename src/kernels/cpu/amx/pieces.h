// SPDX-License-Identifier: Apache-2.0
// The operands of the tile product as pieces: an expert's rows as token tiles, tokens packed for them, and 32 output
// rows x 128 k of weights decoded some lines at a time, so that the product can do it between its dots.
#pragma once

#include "kernels/cpu/amx/operands.h"
#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/body/w4a8_weight.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int64_t kTokensAtOnce = 128;               // whose totals lie beside the weights in the first cache
constexpr int64_t kWeightTile = kBlockRows * kStep;  // bf16 values
constexpr int64_t kLineValues = kWeightTile / 4;
constexpr int64_t kStepsAtOnce = kPanelDepth / kStep;
constexpr int64_t kHalves = kPanelRows / kBlockRows;  // weight tiles a step

// Scratch of a share, in floats: two pieces of decoded weights, the sums of a block, the totals of all tokens.
constexpr int64_t kPieceFloats = kHalves * kStepsAtOnce * kWeightTile / 2;
constexpr int64_t kSumFloats = 2 * kTileRows * kPanelRows;
constexpr int64_t kTotalFloats = kTokensAtOnce * kPanelRows;
static_assert(2 * kPieceFloats + kSumFloats + kTotalFloats <= kGemmScratchFloats);

// The rows of an expert as tiles of equal height. The last tile ends with the last row: where the height does not
// divide, it computes some rows of its neighbour again, to the same bits, and nothing is padded or configured anew.
struct TokenTiles {
  int64_t first = 0;  // slot
  int64_t rows = 0;
  int64_t count = 0;
  int64_t height = 0;

  QD_HD int64_t row(int64_t tile) const { return smaller(tile * height, rows - height); }
};

QD_HD TokenTiles token_tiles(const GroupedRows& rows, int64_t expert) {
  TokenTiles tiles;
  tiles.first = rows.offsets[expert];
  tiles.rows = rows.offsets[expert + 1] - tiles.first;
  tiles.count = (tiles.rows + kTileRows - 1) / kTileRows;
  tiles.height = tiles.count == 0 ? 0 : (tiles.rows + tiles.count - 1) / tiles.count;
  return tiles;
}

// The k axis in pieces that are decoded at once: a group in `exact`, 128 in `vllm`, whose one chain knows no groups.
template <bool kVllm>
QD_HD KAxis tile_axis(const W4A8Gemm& gemm) {
  KAxis axis = k_axis(gemm);
  if (kVllm) {
    axis.piece = kPanelDepth;
    axis.num_pieces = (gemm.k + kPanelDepth - 1) / kPanelDepth;
  }
  return axis;
}

// Tokens of an expert in `packed`: [kp / 32][rows][32] bf16 at the place of its slots, each of token_floats >= kp / 2
// floats. A tile of tokens is one piece of memory, and any rows can be packed by themselves.
QD_HD uint16_t* packed_tokens(const float* packed, const TokenTiles& tiles, int64_t token_floats) {
  return reinterpret_cast<uint16_t*>(const_cast<float*>(packed) + tiles.first * token_floats);
}

// Rows [begin, end) of expert `expert`.
QD_HD void pack_token_rows(const W4A8Gemm& gemm, int64_t expert, int64_t begin, int64_t end, int64_t token_floats,
                           float* packed) {
  const TokenTiles tiles = token_tiles(gemm.rows, expert);
  const int64_t kp = round_up(gemm.k, kStep);
  uint16_t* out = packed_tokens(packed, tiles, token_floats);
  for (int64_t k = 0; k < kp; k += 2 * kStep) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* codes = gemm.act + source_of(gemm.rows, tiles.first + row) * gemm.k + k;
      uint16_t* first = out + (k / kStep * tiles.rows + row) * kStep;
      widen_codes(codes, gemm.k - k, first, k + kStep < kp ? first + tiles.rows * kStep : nullptr);
    }
  }
}

// The rows of token tile `tile` where the driver cuts an expert's rows into tiles of at most `tile_tokens`.
QD_HD void pack_tile_rows(const W4A8Gemm& gemm, int64_t expert, int tile_tokens, int64_t tile, int64_t token_floats,
                          float* packed) {
  const ExpertRows rows = expert_rows(gemm.rows, expert, tile_tokens);
  pack_token_rows(gemm, expert, tile_begin(rows.split, tile), tile_begin(rows.split, tile + 1), token_floats, packed);
}

// Decoding of one piece of one panel, some lines at a time, into [half][step] tiles; zeros where a half has no rows.
// The unit of work is a line in `exact`, the four lines of a step in `vllm`.
template <bool kVllm>
struct PieceDecoder {
  static constexpr int64_t kUnitLines = kVllm ? 4 : 1;
  static constexpr int64_t kUnitValues = kUnitLines * kLineValues;
  // Weights stand in memory until they are decoded; lines that far ahead are fetched.
  static constexpr int64_t kAheadBytes = 1024;

  const W4A8Gemm* gemm;
  const W4Matrix* weights;
  KAxis axis;
  int64_t block = 0;  // of the first half
  int64_t piece = 0;
  int64_t units = 0;  // of a half
  int64_t half = kHalves;
  int64_t unit = 0;
  uint16_t* tiles = nullptr;
  RowTables tables = {};  // `vllm`, of the group at hand

  QD_HD void begin(int64_t panel, int64_t piece_index, uint16_t* to) {
    block = panel * kHalves;
    piece = piece_index;
    units = axis.steps(piece) * 4 / kUnitLines;
    half = unit = 0;
    tiles = to;
  }

  QD_HD int64_t num_units() const { return kHalves * units; }

  // `vllm`: at the first step of a piece or of a group.
  QD_HD void load_tables(int64_t step) {
    const int64_t k = piece * axis.piece + step * kStep;
    if (step != 0 && (axis.num_groups == 1 || k % gemm->group_size != 0)) return;
    const int64_t group = axis.num_groups == 1 ? 0 : k / gemm->group_size;
    load_row_tables(weights->scale_e4m3 + scale_offset<Simd>(axis, block + half, group), tables);
  }

  // Units [unit, last) of the half at hand.
  QD_HD void decode_units(int64_t last) {
    uint16_t* to = tiles + half * kStepsAtOnce * kWeightTile + unit * kUnitValues;
    if ((block + half) * kBlockRows >= gemm->n) {
      for (int64_t i = unit * kUnitValues; i < last * kUnitValues; i += 2 * kBlockRows, to += 2 * kBlockRows) {
        _mm512_storeu_si512(to, Simd::set_i(0));
      }
      return;
    }
    const int64_t line = piece * axis.piece / 8 + unit * kUnitLines;
    const uint32_t* from = words_of<Simd>(*weights, axis, block + half) + line * kBlockRows;
    for (int64_t i = unit; i < last; ++i, from += kUnitLines * kBlockRows, to += kUnitValues) {
      for (int64_t ahead = 0; ahead < kUnitLines; ++ahead) {
        __builtin_prefetch(reinterpret_cast<const char*>(from + ahead * kBlockRows) + kAheadBytes);
      }
      if constexpr (kVllm) {
        load_tables(i);
        decode_step(from, tables, to);
      } else {
        decode_line(from, to);
      }
    }
  }

  QD_HD void advance(int64_t count) {
    while (count > 0 && half < kHalves) {
      const int64_t last = smaller(unit + count, units);
      decode_units(last);
      count -= last - unit;
      unit = last;
      if (unit == units) unit = 0, ++half;
    }
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
