// SPDX-License-Identifier: Apache-2.0
// Canonical 4-bit weights (as a checkpoint holds them) -> the layout of the CPU tables, and back. The model loader
// calls it once a matrix; rows are split over the pool, because start-up should cost no more than reading the file.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "kernels/api/problems.h"
#include "layout/tag.h"
#include "prepare/aligned_buffer.h"

namespace quadrille::prepare {

// One matrix of a checkpoint. Pointers may have any alignment (tensors of a mapped file have none).
struct CanonicalW4 {
  int64_t n = 0;           // out features, any
  int64_t k = 0;           // in features, a multiple of 8
  int64_t group_size = 0;  // 32, 64, 128 (the last group of a row may be shorter), 0: one scale a channel
  // Exactly one of the two:
  const void* packed = nullptr;  // [n, k/8] I32 words, nibbles as packed_source says, lowest nibble = lowest k
  const void* codes = nullptr;   // [n, k] I8, -8..7
  const void* scales = nullptr;  // [n, groups] bf16, groups = ceil(k / group_size), or 1
  kernels::W4Source packed_source = kernels::W4Source::kUint4b8;  // or kInt4; not read where `codes` are given
  // `vllm` only, a shard of a row-parallel matrix: [n] max |scale| over the groups of the unsharded row, from which the
  // channel scale is made; null: over the groups here. Not below what is here (kInvalidData).
  const float* row_absmax = nullptr;

  kernels::W4Source source() const { return packed == nullptr ? kernels::W4Source::kInt8 : packed_source; }
};

// What every preparation asks of its parts: the errors of prepare_w4() but for the contents of codes and scales.
Status check_canonical(std::span<const CanonicalW4> parts);

// One matrix in layout/w4_lanes16.h, with the scales of its numerics.
struct PreparedW4 {
  kernels::Numerics numerics = kernels::Numerics::kExact;
  layout::LayoutTag tag{"", 0};
  int64_t n = 0;
  int64_t k = 0;
  int64_t group_size = 0;
  AlignedBuffer<uint32_t> codes;       // [np/16, kp/8, 16]
  AlignedBuffer<uint16_t> scale_bf16;  // exact: [np/16, groups, 16]
  AlignedBuffer<uint8_t> scale_e4m3;   // vllm: [np/16, groups, 16]
  AlignedBuffer<float> channel_scale;  // vllm: [np]

  // Valid as long as this object lives and is not moved from.
  kernels::W4Matrix view() const;
  int64_t size_bytes() const;
};

// Stacks the rows of `parts` (gate rows, then up rows) into one prepared matrix. The parts have equal k and group size.
// Errors: kUnsupported (group size, k no multiple of 8), kInvalidArgument (parts that do not match), kInvalidData: a
// scale that is NaN or infinite, by row and group, or a code outside -8..7, by row and column, or a row_absmax below a
// scale of its row. Negative scales are legal. `pool` may be null.
Result<PreparedW4> prepare_w4(std::span<const CanonicalW4> parts, kernels::Numerics numerics, ThreadPool* pool);
Result<PreparedW4> prepare_w4(const CanonicalW4& matrix, kernels::Numerics numerics, ThreadPool* pool = nullptr);

// What a checkpoint would hold: the reverse of prepare_w4.
struct CanonicalCopy {
  int64_t n = 0;
  int64_t k = 0;
  int64_t group_size = 0;
  std::vector<uint32_t> packed;  // [n, k/8] uint4b8
  std::vector<uint16_t> scales;  // [n, groups] bf16; empty for vllm, whose scales were rounded on the way
};
CanonicalCopy unprepare(const PreparedW4& matrix);

}  // namespace quadrille::prepare
