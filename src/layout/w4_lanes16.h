// SPDX-License-Identifier: Apache-2.0
// The 4-bit matrix of the CPU tables: 16 rows in the lanes of a vector, one 32-bit word = 8 consecutive k of one row as
// two's complement nibbles. Zero codes behind n and behind k (up to 32), zero scales behind n.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kW4Lanes16Tag{"w4_lanes16", 1};
inline constexpr int kLanes = 16;

// Codes: words [ceil(n/16)][ceil(k/32) * 4][16], lane = n % 16, word = k / 8, nibble = k % 8.
// offset() counts nibbles: word index = offset / 8, nibble in the word = offset % 8.
struct W4Lanes16 {
  int64_t n;
  int64_t k;

  QD_HD constexpr int64_t blocks() const { return ceil_div(n, kLanes); }
  QD_HD constexpr int64_t padded_k() const { return ceil_div(k, 32) * 32; }
  QD_HD constexpr int64_t words_per_lane() const { return padded_k() / 8; }
  QD_HD constexpr int64_t num_words() const { return blocks() * words_per_lane() * kLanes; }

  QD_HD constexpr int64_t word_index(int64_t row, int64_t column) const {
    return (row / kLanes * words_per_lane() + column / 8) * kLanes + row % kLanes;
  }
  QD_HD constexpr int64_t offset(int64_t row, int64_t column) const { return word_index(row, column) * 8 + column % 8; }
  // The reverse. A row of n or more, or a column of k or more, is padding.
  QD_HD constexpr RowColumn at(int64_t nibble_offset) const {
    const int64_t word = nibble_offset / 8;
    const int64_t lane = word % kLanes;
    const int64_t column_word = word / kLanes % words_per_lane();
    const int64_t block = word / kLanes / words_per_lane();
    return {block * kLanes + lane, column_word * 8 + nibble_offset % 8};
  }
};

// Its scales: [ceil(n/16)][groups][16] values of any type; group = k / group size.
struct ScaleLanes16 {
  int64_t n;
  int64_t groups;

  QD_HD constexpr int64_t blocks() const { return ceil_div(n, kLanes); }
  QD_HD constexpr int64_t size() const { return blocks() * groups * kLanes; }
  QD_HD constexpr int64_t offset(int64_t row, int64_t group) const {
    return (row / kLanes * groups + group) * kLanes + row % kLanes;
  }
  // n = row, k = group; a row of n or more is padding.
  QD_HD constexpr RowColumn at(int64_t index) const {
    return {index / kLanes / groups * kLanes + index % kLanes, index / kLanes % groups};
  }
};

// Scales a row: ceil(k / group_size); 1 for one scale a channel (group_size 0).
QD_HD constexpr int64_t num_groups(int64_t k, int64_t group_size) {
  return group_size == 0 ? 1 : ceil_div(k, group_size);
}

}  // namespace quadrille::layout
