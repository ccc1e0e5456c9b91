// SPDX-License-Identifier: Apache-2.0
// One page of the KV cache holds 64 positions of one layer: keys [kv_heads][head_dim][64], so that a score is computed
// for 16 keys at once, values [kv_heads][64][head_dim], so that an output row is.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr LayoutTag kKvPageTag{"kv_page64", 1};
inline constexpr int64_t kPagePositions = 64;

struct KvPlace {
  int64_t head;
  int64_t position;  // within the page
  int64_t dim;
  friend QD_HD constexpr bool operator==(const KvPlace& a, const KvPlace& b) {
    return a.head == b.head && a.position == b.position && a.dim == b.dim;
  }
};

struct KvPage {
  int64_t kv_heads;
  int64_t head_dim;

  // Elements of the keys (and of the values) of one page.
  QD_HD constexpr int64_t size() const { return kv_heads * head_dim * kPagePositions; }
  QD_HD constexpr int64_t key_offset(int64_t head, int64_t position, int64_t dim) const {
    return (head * head_dim + dim) * kPagePositions + position;
  }
  QD_HD constexpr int64_t value_offset(int64_t head, int64_t position, int64_t dim) const {
    return (head * kPagePositions + position) * head_dim + dim;
  }
  QD_HD constexpr KvPlace key_at(int64_t offset) const {
    const int64_t row = offset / kPagePositions;
    return {row / head_dim, offset % kPagePositions, row % head_dim};
  }
  QD_HD constexpr KvPlace value_at(int64_t offset) const {
    const int64_t row = offset / head_dim;
    return {row / kPagePositions, row % kPagePositions, offset % head_dim};
  }
};

}  // namespace quadrille::layout
