// SPDX-License-Identifier: Apache-2.0
// The exchange of expert-parallel ranks (docs/numerics.md section 6): rows of this rank's tokens go to the ranks that
// hold their experts, as FP8 codes with their scales where the experts are W4A8, and the rows of GEMM2 come back, one a
// route, to be combined here. What is sent where is decided in integers. Called by layer.cpp and, for the outputs, by
// the decoder.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "moe/linear.h"
#include "moe/placement.h"
#include "moe/plan.h"

namespace quadrille::moe {

// How a row travels: nothing is lost in any form.
enum class RowForm {
  kCodes,  // e4m3 codes and an fp32 scale: what a W4A8 layer reads
  kBf16,   // fp32 values that are bf16 values
  kF32,
};

// What one rank sends, by destination rank; everything below is in that order, inside a rank ascending. A token that
// has several experts on a rank goes there once.
struct SendPlan {
  struct Route {
    int32_t row = 0;     // among the rows that go to that rank
    int32_t expert = 0;  // the router's number
  };
  std::vector<int64_t> rows_to, routes_to;  // [ranks]
  std::vector<int32_t> token_of_row;
  std::vector<Route> routes;
  std::vector<int32_t> place_of_route;  // [num_tokens * top_k] index in `routes`; -1: an expert of no rank

  int64_t num_rows() const { return static_cast<int64_t>(token_of_row.size()); }
  int64_t num_routes() const { return static_cast<int64_t>(routes.size()); }
};

// ids [num_tokens, top_k] of rank `source`'s tokens. Errors: kInvalidArgument for an id outside of -1..num_experts - 1,
// and for more than 2^31 - 1 routes.
Status plan_send(std::span<const int32_t> ids, int64_t num_tokens, int64_t top_k, const Placement& placement,
                 int source, SendPlan* plan);

// What came to this rank from all, in rank order. `plan` sorts the routes (one a "token") by local slot.
struct ReceivedRows {
  LinearInput input{static_cast<const float*>(nullptr), 0, 0};
  Plan plan;
  std::vector<int32_t> row_of_slot;  // the row of `input` that each slot of the plan reads
  std::vector<int64_t> routes_from;  // [ranks]
};

// A collective of execution.expert_ranks. `input` [num_tokens, k]: its rows token_of_row are sent in the form that
// `form` names; it is quantised here where that asks for it. `form` and the width are equal on all ranks. What is
// received lies in the scratch of `execution`. Errors: those of the communicator; kInvalidData when a rank sends a row
// for an expert that is not here.
Result<ReceivedRows> dispatch_rows(const SendPlan& plan, LinearInput* input, RowForm form, const Placement& placement,
                                   const Execution& execution);

// The way back, a collective too: rows [received.plan.num_slots(), width] -> [plan.num_routes(), width] in the order of
// plan.routes, in scratch. `form`: kBf16 where the rows are rounded, else kF32.
Result<const float*> return_rows(const SendPlan& plan, const ReceivedRows& received, const float* rows, int64_t width,
                                 RowForm form, const Execution& execution);

// The tokens that rank `rank` of `ranks` sends where all ranks have the same `num_tokens`: contiguous, as even as
// possible, none where there are fewer tokens than ranks.
struct TokenRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
TokenRange token_range(int64_t num_tokens, int rank, int ranks);

// all [num_tokens, width] = the rows `mine` of every rank, which has those of its token_range(). A collective. `form`
// as in return_rows(). Errors: those of the communicator.
Status gather_tokens(const float* mine, int64_t num_tokens, int64_t width, RowForm form, const Execution& execution,
                     float* all);

}  // namespace quadrille::moe
