// SPDX-License-Identifier: Apache-2.0
// One page of the device's KV cache: 64 positions of one layer, for each KV head one tile: keys, then values, each
// 64 * padded_dim bf16. A tile lies in memory as the tensor cores' fragments are read from shared memory, so that one
// bulk copy brings it and every 16-byte read is free of bank conflicts. Dimensions behind head_dim are zero.
//
// Keys: 64 rows of padded_dim values, 16-byte pieces of odd rows swapped by halves of 128 bytes (where a row is a
// multiple of those). Values: 32 rows, one a pair of positions; a word holds dimension d of positions 2p and 2p + 1,
// 16-byte pieces of row p permuted by 2 * (p % 4) within 128 bytes.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/kv_page.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kKvTileTag{"kv_tile64", 1};

// The head dimensions that the attention kernels are compiled for; others are padded to the next of them.
inline constexpr int64_t kTileDims[] = {32, 64, 96, 128, 192, 256};
inline constexpr int64_t kMostTileDim = 256;

// 0: no kernel takes the head.
QD_HD constexpr int64_t padded_head_dim(int64_t head_dim) {
  if (head_dim < 1 || head_dim > 256) return 0;
  if (head_dim <= 128) return (head_dim + 31) / 32 * 32;
  return head_dim <= 192 ? 192 : 256;
}

struct KvTile {
  int64_t kv_heads;
  int64_t head_dim;

  QD_HD constexpr int64_t padded_dim() const { return padded_head_dim(head_dim); }
  // Elements of one tile, and of a page of one layer.
  QD_HD constexpr int64_t tile_size() const { return 2 * kPagePositions * padded_dim(); }
  QD_HD constexpr int64_t page_size() const { return kv_heads * tile_size(); }
  QD_HD constexpr int64_t values_begin() const { return kPagePositions * padded_dim(); }

  // Element of the page that holds dimension `dim` (below padded_dim) of the key at `position` of the page.
  QD_HD constexpr int64_t key_offset(int64_t head, int64_t position, int64_t dim) const {
    return head * tile_size() + position * padded_dim() + key_place(position, dim, padded_dim());
  }
  QD_HD constexpr int64_t value_offset(int64_t head, int64_t position, int64_t dim) const {
    const int64_t pair = position / 2;
    return head * tile_size() + values_begin() + pair * 2 * padded_dim() + 2 * value_place(pair, dim) + position % 2;
  }
  // The reverse: what lies at an element of the page; dim >= head_dim is padding.
  QD_HD constexpr bool holds_key(int64_t offset) const { return offset % tile_size() < values_begin(); }
  QD_HD constexpr KvPlace at(int64_t offset) const {
    const int64_t head = offset / tile_size();
    const int64_t in_tile = offset % tile_size();
    if (in_tile < values_begin()) {
      const int64_t position = in_tile / padded_dim();
      return {head, position, key_place(position, in_tile % padded_dim(), padded_dim())};
    }
    const int64_t word = (in_tile - values_begin()) / 2;
    const int64_t pair = word / padded_dim();
    return {head, 2 * pair + offset % 2, value_place(pair, word % padded_dim())};
  }

  // Place of a dimension within the row of a key; its own inverse. Rows of 64 and 192 bytes alternate halves of 128
  // bytes by themselves.
  QD_HD static constexpr int64_t key_place(int64_t position, int64_t dim, int64_t padded) {
    return padded % 64 == 0 ? dim ^ (position % 2 * 32) : dim;
  }
  // Place, in words, of a dimension within the row of a pair of values; its own inverse.
  QD_HD static constexpr int64_t value_place(int64_t pair, int64_t dim) { return dim ^ (pair % 4 * 8); }
};

}  // namespace quadrille::layout
