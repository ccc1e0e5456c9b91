// SPDX-License-Identifier: Apache-2.0
// The 4-bit matrix of the Hopper kernels: records of 64 rows x 128 k, codes in the order of the wgmma A fragment from
// registers, the record's scales behind them, so that one bulk copy brings all that a k128 step of 64 rows needs.
// Padding behind n and k: code 0; scale -0 (exact), 0x00 (vllm). fmaf(-0, +0, final) is final for every final, so a
// padded group adds nothing, not even to a zero's sign.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kW4Hopper64ExactTag{"w4_hopper64_exact", 1};
inline constexpr LayoutTag kW4Hopper64VllmTag{"w4_hopper64_vllm", 1};

inline constexpr int kRecordRows = 64;
inline constexpr int kRecordK = 128;
inline constexpr int kRecordCodeBytes = kRecordRows * kRecordK / 2;
inline constexpr uint16_t kPadScaleBf16 = 0x8000;

// Place of one code: a 32-bit word of the matrix, and which of its eight codes (byte b of row r0 or of row r0 + 8).
struct HopperCodePlace {
  int64_t word;  // from the first byte of the matrix, in 4-byte words
  int half;      // 0: row r0 of the thread, 1: row r0 + 8
  int b;         // k % 4
  friend QD_HD constexpr bool operator==(const HopperCodePlace& a, const HopperCodePlace& c) {
    return a.word == c.word && a.half == c.half && a.b == c.b;
  }
};

struct W4Hopper64 {
  int64_t n;
  int64_t k;
  int64_t group_size;  // 32, 64, 128; 0: one scale a channel, stored once a record
  bool vllm;           // e4m3 scales (one byte) instead of bf16 (two)

  // Scales a row and record: pieces of 128 with equal scales for one scale a channel.
  QD_HD constexpr int groups_per_record() const { return group_size == 32 ? 4 : group_size == 64 ? 2 : 1; }
  QD_HD constexpr int scale_bytes() const { return kRecordRows * groups_per_record() * (vllm ? 1 : 2); }
  QD_HD constexpr int record_bytes() const { return kRecordCodeBytes + scale_bytes(); }
  QD_HD constexpr int64_t row_blocks() const { return ceil_div(n, kRecordRows); }
  QD_HD constexpr int64_t k_records() const { return ceil_div(k, kRecordK); }
  QD_HD constexpr int64_t padded_n() const { return row_blocks() * kRecordRows; }
  QD_HD constexpr int64_t padded_k() const { return k_records() * kRecordK; }
  QD_HD constexpr int64_t num_bytes() const { return row_blocks() * k_records() * record_bytes(); }

  // First byte of record (row block, k record): the records of a row block are contiguous, k ascending.
  QD_HD constexpr int64_t record_offset(int64_t row_block, int64_t record) const {
    return (row_block * k_records() + record) * record_bytes();
  }
  // Thread (w, g, t) of the warpgroup owns 16 bytes of each 64-k half: word j = 2 * (k32 step) + (16-k half of it).
  QD_HD constexpr HopperCodePlace code_place(int64_t row, int64_t column) const {
    const int r = static_cast<int>(row % kRecordRows);
    const int c = static_cast<int>(column % kRecordK);
    const int thread = r / 16 * 32 + r % 8 * 4 + c % 16 / 4;
    const int word = c / 64 * 512 + thread * 4 + c % 64 / 32 * 2 + c % 32 / 16;
    return {record_offset(row / kRecordRows, column / kRecordK) / 4 + word, r % 16 / 8, c % 4};
  }
  // Row and column inside a record of the first code (half 0, b 0) of 16-byte piece 0..255; word j of the piece lies 16
  // j columns further, half 1 eight rows below.
  QD_HD static constexpr int piece_row(int piece) { return piece % 128 / 32 * 16 + piece % 32 / 4; }
  QD_HD static constexpr int piece_column(int piece) { return piece / 128 * 64 + piece % 4 * 4; }
  // The reverse, for a word inside the codes of its record. A row of n or more, or a column of k or more, is padding.
  QD_HD constexpr RowColumn code_at(const HopperCodePlace& place) const {
    const int64_t record = place.word * 4 / record_bytes();
    const int word = static_cast<int>(place.word - record * record_bytes() / 4);
    const int thread = word % 512 / 4;
    const int r = thread / 32 * 16 + thread % 32 / 4 + place.half * 8;
    const int c = word / 512 * 64 + word % 4 / 2 * 32 + word % 2 * 16 + thread % 4 * 4 + place.b;
    return {record / k_records() * kRecordRows + r, record % k_records() * kRecordK + c};
  }
  // Place of the scale of (row of the record, group of the record) among the record's scales: pairs (row r0, row r0 +
  // 8) side by side.
  QD_HD static constexpr int scale_index(int row, int group) {
    const int pair = row / 16 * 8 + row % 8;
    return (group * (kRecordRows / 2) + pair) * 2 + row % 16 / 8;
  }
  // Byte of the scale of (row, group of the record).
  QD_HD constexpr int64_t scale_offset(int64_t row, int64_t record, int group) const {
    return record_offset(row / kRecordRows, record) + kRecordCodeBytes +
           scale_index(static_cast<int>(row % kRecordRows), group) * (vllm ? 1 : 2);
  }
  // Scale of the source row that a group of a record takes: one scale a channel is repeated in every record.
  QD_HD constexpr int64_t source_group(int64_t record, int group) const {
    return group_size == 0 ? 0 : record * groups_per_record() + group;
  }
};

// Gate and up rows of one width, eight and eight: a thread of the kernel then holds gate and up of the same channel.
// Prepared row -> which matrix (0 gate, 1 up) and its row. `width` is a multiple of 8.
struct InterleavedRow {
  int part;
  int64_t row;
};
QD_HD constexpr InterleavedRow deinterleave_row(int64_t prepared_row) {
  return {static_cast<int>(prepared_row % 16 / 8), prepared_row / 16 * 8 + prepared_row % 8};
}
QD_HD constexpr int64_t interleave_row(int part, int64_t row) {
  return row / 8 * 16 + part * 8 + row % 8;
}

}  // namespace quadrille::layout
