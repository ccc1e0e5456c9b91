// SPDX-License-Identifier: Apache-2.0
// Where a checkpoint keeps a 4-bit weight (compressed-tensors pack-quantized): [N, ceil(K/8)] I32 words, uint4b8
// nibbles, lowest nibble = lowest k. Preparation reads it, the quantiser writes it.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kW4CanonicalTag{"w4_canonical", 1};

// offset() counts nibbles from the first word of the matrix: word = offset / 8, nibble in it = offset % 8.
struct W4Canonical {
  int64_t n;
  int64_t k;

  QD_HD constexpr int64_t words_per_row() const { return ceil_div(k, 8); }
  QD_HD constexpr int64_t num_words() const { return n * words_per_row(); }
  QD_HD constexpr int64_t offset(int64_t row, int64_t column) const { return row * words_per_row() * 8 + column; }
  // The reverse. A column of k or more is the padding behind a row.
  QD_HD constexpr RowColumn at(int64_t nibble_offset) const {
    const int64_t row_nibbles = words_per_row() * 8;
    return {nibble_offset / row_nibbles, nibble_offset % row_nibbles};
  }
};

}  // namespace quadrille::layout
