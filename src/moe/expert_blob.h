// SPDX-License-Identifier: Apache-2.0
// One expert as one run of bytes: codes, all scales, channel scales and biases of its two matrices in the layout they
// are computed in, behind a header with everything that must fit before they are believed. For moving an expert to
// another rank at run time. Called by model/expert_moves.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "core/result.h"
#include "parallel/communicator.h"
#include "prepare/prepare_bf16.h"
#include "prepare/prepare_w4.h"

namespace quadrille::moe {

// Which expert this is: of which layer, and which tensor-parallel cut of it.
struct ExpertName {
  int64_t layer = 0, expert = 0;
  int32_t tensor_rank = 0, tensor_ranks = 1;
  friend bool operator==(const ExpertName&, const ExpertName&) = default;
};

// What every expert of a layer is on a rank.
struct MatrixKind {
  bool is_w4 = false;
  kernels::Numerics numerics = kernels::Numerics::kExact;  // of a 4-bit matrix
  int64_t n = 0, k = 0, group_size = 0;
  bool has_bias = false;
  friend bool operator==(const MatrixKind&, const MatrixKind&) = default;
};
struct ExpertKind {
  MatrixKind gate_up, down;
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
struct Expert {
  ExpertMatrix gate_up, down;
};

// Its codes, scales and bias in the order of a blob.
std::vector<std::span<const std::byte>> parts_of(const MatrixRef& matrix);

using Blob = std::vector<std::byte>;

Blob pack_expert(const ExpertName& name, const MatrixRef& gate_up, const MatrixRef& down);

// The expert in memory of its own. kInvalidData, each with expected and found: bytes that are no blob or of another
// version, another expert or cut, another layout tag, kind or shape, a wrong length, a wrong checksum.
Result<Expert> unpack_expert(std::span<const std::byte> blob, const ExpertName& name, const ExpertKind& kind);

// Collective: `blob` of rank `from` in `blob` of rank `to`; the others pass an empty one, which stays so.
Status send_blob(parallel::Communicator& ranks, int from, int to, Blob* blob);

}  // namespace quadrille::moe
