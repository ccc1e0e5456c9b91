// SPDX-License-Identifier: Apache-2.0
// Allocation and the scatter of new keys and values into their pages.
#include "model/kv_cache.h"

#include <algorithm>

#include "layout/kv_page.h"
#include "numerics/bf16.h"

namespace quadrille::model {

using kernels::KvType;

static_assert(kPagePositions == layout::kPagePositions, "a page of the step is a page of the layout");

namespace {

int64_t element_bytes(KvType type) {
  return type == KvType::kBf16 ? 2 : 4;
}

void store(float value, uint16_t* place) {
  *place = numerics::bf16_from_f32(value);
}
void store(float value, float* place) {
  *place = value;
}

// One head of one token: k, v [head_dim].
template <typename T>
void write_head(const layout::KvPage& page, int64_t head, int64_t position, const float* k, const float* v, T* keys,
                T* values) {
  for (int64_t d = 0; d < page.head_dim; ++d) {
    store(k[d], keys + page.key_offset(head, position, d));
    store(v[d], values + page.value_offset(head, position, d));
  }
}

}  // namespace

uint64_t KvCache::bytes_per_page(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, KvType type) {
  return static_cast<uint64_t>(2 * num_layers * num_kv_heads * head_dim * kPagePositions * element_bytes(type));
}

Result<KvCache> KvCache::create(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t num_pages,
                                KvType type) {
  constexpr uint64_t kMostBytes = uint64_t{1} << 46;
  const uint64_t page_bytes = bytes_per_page(num_layers, num_kv_heads, head_dim, type);
  if (num_pages < 1 || page_bytes > kMostBytes / static_cast<uint64_t>(num_pages)) {
    return make_error(ErrorCode::kCapacity, "cache: {} pages of {} bytes; ask for at least one page and less memory",
                      num_pages, page_bytes);
  }
  KvCache cache;
  cache.num_kv_heads_ = num_kv_heads;
  cache.head_dim_ = head_dim;
  cache.num_pages_ = num_pages;
  cache.type_ = type;
  cache.bytes_ = page_bytes * static_cast<uint64_t>(num_pages);
  cache.layer_bytes_ = static_cast<int64_t>(cache.bytes_) / num_layers;
  cache.memory_.reset(static_cast<std::byte*>(std::calloc(cache.bytes_, 1)));
  if (cache.memory_ == nullptr) {
    return make_error(ErrorCode::kCapacity,
                      "cache: the system has no {} bytes for {} pages of {} positions; ask for less", cache.bytes_,
                      num_pages, kPagePositions);
  }
  return cache;
}

const void* KvCache::values(int64_t layer) const {
  return layer_start(layer) + layer_bytes_ / 2;
}

void KvCache::write(int64_t layer, const Step& step, const float* k, const float* v, ThreadPool* pool) {
  const layout::KvPage page{num_kv_heads_, head_dim_};
  const int64_t row = num_kv_heads_ * head_dim_;
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  std::byte* const keys = layer_start(layer);
  std::byte* const values = keys + layer_bytes_ / 2;
  const auto write_token = [&](int64_t t) {
    const int64_t position = step.positions[t];
    const int64_t entry = step.sequences[t] * step.page_table_stride + position / kPagePositions;
    const int64_t first = step.page_table[entry] * page.size();
    for (int64_t h = 0; h < num_kv_heads_; ++h) {
      const float* k_head = k + t * row + h * head_dim_;
      const float* v_head = v + t * row + h * head_dim_;
      if (type_ == KvType::kBf16) {
        write_head(page, h, position % kPagePositions, k_head, v_head, reinterpret_cast<uint16_t*>(keys) + first,
                   reinterpret_cast<uint16_t*>(values) + first);
      } else {
        write_head(page, h, position % kPagePositions, k_head, v_head, reinterpret_cast<float*>(keys) + first,
                   reinterpret_cast<float*>(values) + first);
      }
    }
  };
  // A token costs less than waking a thread.
  constexpr int64_t kTokensPerPart = 8;
  const int64_t parts = (num_tokens + kTokensPerPart - 1) / kTokensPerPart;
  const auto write_part = [&](int64_t part) {
    const int64_t end = std::min(num_tokens, (part + 1) * kTokensPerPart);
    for (int64_t t = part * kTokensPerPart; t < end; ++t) write_token(t);
  };
  if (parts <= 1) {
    if (parts == 1) write_part(0);
    return;
  }
  pool->run(parts, write_part);
}

}  // namespace quadrille::model
