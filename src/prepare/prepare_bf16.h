// SPDX-License-Identifier: Apache-2.0
// Dense matrices (bf16, f16 or f32 in the checkpoint) -> bf16 in the layout of the CPU tables. The model loader calls
// it for embeddings-as-heads, attention, and whatever the checkpoint left unquantised.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "layout/tag.h"
#include "prepare/aligned_buffer.h"

namespace quadrille::prepare {

enum class DenseType { kBf16, kF16, kF32 };

// One matrix [n, k] row-major, any alignment.
struct CanonicalDense {
  int64_t n = 0;
  int64_t k = 0;
  DenseType type = DenseType::kBf16;
  const void* data = nullptr;  // [n, k]
};

struct PreparedBf16 {
  layout::LayoutTag tag{"", 0};
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_rounded = 0;        // values that were not exact in bf16 (f16 and f32 sources)
  AlignedBuffer<uint16_t> codes;  // [np/16, k, 16]

  const uint16_t* view() const { return codes.data(); }
  int64_t size_bytes() const { return codes.size_bytes(); }
};

// Stacks the rows of `parts` (q, k, v; or gate, up) into one matrix, rounding to nearest even where a source is wider.
// Errors: kInvalidArgument (parts with different k, an empty matrix), kInvalidData: a value that is NaN or infinite, or
// that overflows bf16, by row and column. `pool` may be null.
Result<PreparedBf16> prepare_bf16(std::span<const CanonicalDense> parts, ThreadPool* pool);
Result<PreparedBf16> prepare_bf16(const CanonicalDense& matrix, ThreadPool* pool = nullptr);

// Row-major bf16 [n, k] again.
std::vector<uint16_t> unprepare(const PreparedBf16& matrix);

}  // namespace quadrille::prepare
