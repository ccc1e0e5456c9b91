// SPDX-License-Identifier: Apache-2.0
// Which keys a query sees and where they lie, for the attention of both reference tables.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/api/problems.h"
#include "layout/kv_page.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::ref {

// Visible positions of a query: [first, last], last = its own.
struct KeyRange {
  int64_t first;
  int64_t last;
};

inline KeyRange visible_keys(const Attention& p, int64_t token) {
  const int64_t last = p.position[token];
  const int64_t first = p.window > 0 && last - p.window + 1 > 0 ? last - p.window + 1 : 0;
  return {first, last};
}

// Offset of the page that holds key block `block` of the token's sequence, for one KV head: keys [head_dim, 64] and
// values [64, head_dim] start there alike.
inline int64_t page_offset(const Attention& p, int64_t token, int64_t kv_head, int64_t block) {
  const layout::KvPage page{p.num_kv_heads, p.head_dim};
  const int64_t index = p.page_table[p.sequence[token] * p.page_table_stride + block];
  return index * page.size() + page.key_offset(kv_head, 0, 0);
}

// Elements of a page as fp32, whatever their type.
struct LoadBf16 {
  const uint16_t* data;
  QD_HD float operator[](int64_t i) const { return numerics::bf16_to_f32(data[i]); }
};
struct LoadF32 {
  const float* data;
  QD_HD float operator[](int64_t i) const { return data[i]; }
};

}  // namespace quadrille::kernels::ref
