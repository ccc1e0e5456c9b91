// SPDX-License-Identifier: Apache-2.0
// A prepared matrix as one run of bytes: codes, all scales, channel scales and bias in the layout they are computed in,
// each part at a multiple of 64 bytes, zeros between. Blobs of experts and the sections of a prepared file are made of
// these runs; a view of one computes where it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "core/result.h"
#include "layout/tag.h"
#include "prepare/prepare_bf16.h"
#include "prepare/prepare_w4.h"

namespace quadrille::moe {

inline constexpr uint64_t kPartAlignment = 64;

// What every expert of a layer is on a rank.
struct MatrixKind {
  bool is_w4 = false;
  kernels::Numerics numerics = kernels::Numerics::kExact;  // of a 4-bit matrix
  int64_t n = 0, k = 0, group_size = 0;
  bool has_bias = false;
  friend bool operator==(const MatrixKind&, const MatrixKind&) = default;
};

// A matrix where it lies; one of the two pointers.
struct MatrixRef {
  const prepare::PreparedW4* w4 = nullptr;
  const prepare::PreparedBf16* bf16 = nullptr;
  std::span<const float> bias;  // [n] or empty
};
struct ExpertMatrix {
  std::variant<prepare::PreparedBf16, prepare::PreparedW4> weights;
  std::vector<float> bias;
};

layout::LayoutTag tag_of(const MatrixKind& kind);
MatrixKind kind_of(const MatrixRef& matrix);
MatrixRef ref_of(const ExpertMatrix& matrix);

// Its codes, scales and bias in the order of the run; parts that the kind does not have are empty.
std::vector<std::span<const std::byte>> parts_of(const MatrixRef& matrix);

// Bytes of the run of a matrix of that kind, a multiple of 64. The kind has been checked: n and k above 0.
uint64_t run_bytes(const MatrixKind& kind);

// The run of `matrix`, handed to `take` piece by piece, zeros included.
template <typename Take>
void each_piece(const MatrixRef& matrix, Take&& take) {
  static constexpr std::byte kZeros[kPartAlignment] = {};
  for (const auto part : parts_of(matrix)) {
    if (part.empty()) continue;
    take(part);
    const uint64_t over = part.size() % kPartAlignment;
    if (over > 0) take(std::span<const std::byte>(kZeros).first(kPartAlignment - over));
  }
}

// The matrix in a run of run_bytes(kind) bytes that begins at a multiple of 64: its codes and scales are read where
// they lie, the bias is copied.
ExpertMatrix view_matrix(const MatrixKind& kind, std::span<const std::byte> run);
// The same in memory of its own.
ExpertMatrix copy_matrix(const MatrixKind& kind, std::span<const std::byte> run);

// A kind as bytes of a file or a message.
struct MatrixHeader {
  char tag[24] = {};
  uint32_t tag_version = 0;
  uint32_t numerics = 0;
  int64_t n = 0, k = 0, group_size = 0;
  uint32_t is_w4 = 0, has_bias = 0;
};
static_assert(sizeof(MatrixHeader) == 64, "no padding that a checksum would not define");

MatrixHeader header_of(const MatrixKind& kind);
// "w4_lanes16 version 1 [64, 64] exact group 32 with bias"
std::string text_of(const MatrixHeader& header);

}  // namespace quadrille::moe
