// SPDX-License-Identifier: Apache-2.0
// One expert as one run of bytes: its two matrices as matrix_bytes.h lays them out, behind a header with everything
// that must fit before they are believed. For moving an expert to another rank at run time (model/expert_moves.h), and
// the section of an expert in a prepared file (model/prepared_weights.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "moe/matrix_bytes.h"
#include "parallel/communicator.h"

namespace quadrille::moe {

// Which expert this is: of which layer, and which tensor-parallel cut of it.
struct ExpertName {
  int64_t layer = 0, expert = 0;
  int32_t tensor_rank = 0, tensor_ranks = 1;
  friend bool operator==(const ExpertName&, const ExpertName&) = default;
};

struct ExpertKind {
  MatrixKind gate_up, down;
};

struct Expert {
  ExpertMatrix gate_up, down;
};

using Blob = std::vector<std::byte>;

Blob pack_expert(const ExpertName& name, const MatrixRef& gate_up, const MatrixRef& down);

// The expert in memory of its own. kInvalidData, each with expected and found: bytes that are no blob or of another
// version, another expert or cut, another layout tag, kind or shape, a wrong length, a wrong checksum.
Result<Expert> unpack_expert(std::span<const std::byte> blob, const ExpertName& name, const ExpertKind& kind);

// Bytes of a blob of experts of that kind.
uint64_t blob_bytes(const ExpertKind& kind);

// The expert computed from where its blob lies, at a multiple of 64 bytes, blob_bytes(kind) long. Nothing of the blob
// is read but a bias: the caller vouches for it, or asks check_blob() before the first use.
Expert view_expert(std::span<const std::byte> blob, const ExpertKind& kind);

// The errors of unpack_expert(), and nothing made. Reads the whole blob.
Status check_blob(std::span<const std::byte> blob, const ExpertName& name, const ExpertKind& kind);

// Collective: `blob` of rank `from` in `blob` of rank `to`; the others pass an empty one, which stays so.
Status send_blob(parallel::Communicator& ranks, int from, int to, Blob* blob);

}  // namespace quadrille::moe
