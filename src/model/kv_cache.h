// SPDX-License-Identifier: Apache-2.0
// Keys and values of all layers in numbered pages of 64 positions (layout/kv_page.h). The engine hands pages out; the
// decoder writes and attention reads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/result.h"
#include "core/thread_pool.h"
#include "kernels/api/problems.h"
#include "model/forward.h"

namespace quadrille::model {

class KvCache {
 public:
  // bf16 storage holds round-bf16 values exactly; round f32 keeps fp32. The memory is zero and committed by the system
  // when a page is first written. Errors: kCapacity when the size overflows or the system refuses, with the size.
  static Result<KvCache> create(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, int64_t num_pages,
                                kernels::KvType type);
  static uint64_t bytes_per_page(int64_t num_layers, int64_t num_kv_heads, int64_t head_dim, kernels::KvType type);

  int64_t num_pages() const { return num_pages_; }
  kernels::KvType type() const { return type_; }
  uint64_t bytes() const { return bytes_; }
  const void* keys(int64_t layer) const { return layer_start(layer); }
  const void* values(int64_t layer) const;

  // Stores k and v of the step's tokens: k, v [num_tokens, num_kv_heads, head_dim] fp32 (values that bf16 holds, where
  // the storage is bf16). The step was checked.
  void write(int64_t layer, const Step& step, const float* k, const float* v, ThreadPool* pool);

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::byte* layer_start(int64_t layer) const { return memory_.get() + layer * layer_bytes_; }

  int64_t num_kv_heads_ = 0, head_dim_ = 0, num_pages_ = 0;
  kernels::KvType type_ = kernels::KvType::kBf16;
  uint64_t bytes_ = 0;
  int64_t layer_bytes_ = 0;  // keys, then values of all pages of one layer
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace quadrille::model
