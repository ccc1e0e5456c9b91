// SPDX-License-Identifier: Apache-2.0
// One page of the device's KV cache: 64 positions of one layer, for each KV head one tile: keys, then values, each
// 64 * padded_dim bf16. A tile lies in memory as the tensor cores read it from shared memory, so that one bulk copy
// brings it: wgmma by descriptor (64-byte swizzle), ldmatrix without bank conflicts. Dimensions behind head_dim are
// zero.
//
// Keys and values alike: chunks of 32 dimensions, each 64 rows (positions) of 64 bytes, whose 16-byte piece i lies at
// i ^ (row / 2 % 4). A row of values has its dimensions in order. A row of keys has those of a k16 step in two pieces:
// step h of the chunk takes dimensions 8 t + 4 h + {0..3} (t = 0..3), in piece 2 h {0, 1} of each t, in piece 2 h + 1
// {2, 3}; so the 16 bytes of a query row at 8 t are a lane's share of both steps.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/kv_page.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kKvTileTag{"kv_tile64", 2};

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

  static constexpr int64_t kChunkDims = 32;
  static constexpr int64_t kChunkSize = kPagePositions * kChunkDims;

  QD_HD constexpr int64_t padded_dim() const { return padded_head_dim(head_dim); }
  // Elements of one tile, and of a page of one layer.
  QD_HD constexpr int64_t tile_size() const { return 2 * kPagePositions * padded_dim(); }
  QD_HD constexpr int64_t page_size() const { return kv_heads * tile_size(); }
  QD_HD constexpr int64_t values_begin() const { return kPagePositions * padded_dim(); }

  // Element of the page that holds dimension `dim` (below padded_dim) of the key at `position` of the page. Two
  // dimensions from an even one on are neighbours, and eight of a value from a multiple of eight on.
  QD_HD constexpr int64_t key_offset(int64_t head, int64_t position, int64_t dim) const {
    return head * tile_size() + place(position, dim - dim % kChunkDims + key_place(dim % kChunkDims));
  }
  QD_HD constexpr int64_t value_offset(int64_t head, int64_t position, int64_t dim) const {
    return head * tile_size() + values_begin() + place(position, dim);
  }
  // The reverse: what lies at an element of the page; dim >= head_dim is padding.
  QD_HD constexpr bool holds_key(int64_t offset) const { return offset % tile_size() < values_begin(); }
  QD_HD constexpr KvPlace at(int64_t offset) const {
    const int64_t in_half = offset % values_begin();
    const int64_t position = in_half % kChunkSize / kChunkDims;
    const int64_t within = swizzled(position, in_half % kChunkDims);
    const int64_t dim = in_half / kChunkSize * kChunkDims + (holds_key(offset) ? key_dim(within) : within);
    return {offset / tile_size(), position, dim};
  }

  // Place of a dimension (of 32) in the unswizzled row of a key, and the reverse.
  QD_HD static constexpr int64_t key_place(int64_t dim) {
    return dim / 4 % 2 * 16 + dim / 2 % 2 * 8 + dim / 8 * 2 + dim % 2;
  }
  QD_HD static constexpr int64_t key_dim(int64_t place) {
    return place % 8 / 2 * 8 + place / 16 * 4 + place / 8 % 2 * 2 + place % 2;
  }
  // Place of an element (of 32) in a row; its own inverse.
  QD_HD static constexpr int64_t swizzled(int64_t position, int64_t element) {
    return element ^ (position / 2 % 4 * 8);
  }

 private:
  QD_HD static constexpr int64_t place(int64_t position, int64_t element) {
    return element / kChunkDims * kChunkSize + position * kChunkDims + swizzled(position, element % kChunkDims);
  }
};

}  // namespace quadrille::layout
