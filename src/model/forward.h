// SPDX-License-Identifier: Apache-2.0
// What the engine asks of a model: one step over a ragged batch of tokens, keys and values in numbered pages. The
// engine decides which page belongs to whom; the model neither knows requests nor allocates pages.
#pragma once

#include <cstdint>
#include <span>

#include "core/result.h"

namespace quadrille::model {

// Positions a page holds; equals the key block of attention (docs/numerics.md section 5).
inline constexpr int64_t kPagePositions = 64;

// One step. Tokens of one sequence stand in ascending position; their keys and values are written before attention
// reads. A sequence's earlier positions must already be in its pages.
struct Step {
  std::span<const int32_t> ids;        // [T] token ids
  std::span<const int32_t> positions;  // [T] absolute position of each token in its sequence
  std::span<const int32_t> sequences;  // [T] row of page_table
  // [num_sequences, page_table_stride]: page of positions [64 i, 64 i + 64); -1 behind a sequence's last page
  std::span<const int32_t> page_table;
  int64_t page_table_stride = 0;
  // [R] ascending indices into [0, T): the tokens whose logits are wanted; empty where only keys and values are
  std::span<const int32_t> logit_rows;
};

class AsyncForward;

// A model that can run steps. Not thread safe: one step at a time.
class Forward {
 public:
  virtual ~Forward() = default;
  virtual int64_t vocab_size() const = 0;     // columns of the logits
  virtual int64_t max_positions() const = 0;  // longest sequence that the position tables allow
  virtual int64_t num_pages() const = 0;      // pages of the cache
  // logits: [R, vocab_size] fp32. The bits of a row depend on its own sequence alone, never on the rest of the step.
  // Errors: kCancelled when stopped midway; kInvalidData when a weight file shrank.
  virtual Status run(const Step& step, std::span<float> logits) = 0;
  // The other way to run steps (async_forward.h) where this model has it now; else null. Owned by the model.
  virtual AsyncForward* async_forward() { return nullptr; }
};

}  // namespace quadrille::model
