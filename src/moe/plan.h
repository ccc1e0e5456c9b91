// SPDX-License-Identifier: Apache-2.0
// Which row of the grouped products belongs to which route: a counting sort of the routes by expert. Integers only,
// stable, the same on every machine. Called by layer.h; later by whoever sends tokens between ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"

namespace quadrille::moe {

// A route is (token t, choice j) with number t * top_k + j; a slot is a row of the grouped products. Slots of expert e
// are [offsets[e], offsets[e + 1]), inside an expert in ascending route number.
struct Plan {
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  std::vector<int64_t> offsets;        // [num_experts + 1]
  std::vector<int32_t> token_of_slot;  // [num_slots]
  std::vector<int32_t> route_of_slot;  // [num_slots]
  std::vector<int32_t> slot_of_route;  // [num_tokens * top_k]; -1: the route's expert is not here

  int64_t num_experts() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t num_slots() const { return offsets.back(); }
};

// Fills `plan`, reusing its memory. ids [num_tokens, top_k] in 0..num_experts-1, or -1: not here. Any number of
// experts, also none; zero tokens are fine; a token may name an expert twice. Errors: kInvalidArgument with token,
// choice and id for an id outside of that, and for more than 2^31 - 1 routes.
Status build_plan(std::span<const int32_t> ids, int64_t num_tokens, int64_t top_k, int64_t num_experts, Plan* plan);

}  // namespace quadrille::moe
