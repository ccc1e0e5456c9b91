// SPDX-License-Identifier: Apache-2.0
// From router logits to the experts of each token and their weights: one rule as data, no code per architecture.
// docs/numerics.md section 4 defines the order of every sum. Called by layer.h; the families of the model fill the
// rule.
#pragma once

#include <cstdint>

#include "core/result.h"
#include "core/thread_pool.h"
#include "kernels/api/problems.h"

namespace quadrille::moe {

using kernels::Scoring;

struct RouterRule {
  Scoring scoring = Scoring::kSoftmaxBeforeTopK;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool renormalise = false;      // divide by the sum over the chosen
  float renorm_epsilon = 0;      // added to that sum: 1e-20 where the architecture has it
  float routed_scaling = 1;      // multiplies the weights at the end
  int64_t num_groups = 1;        // experts in equal groups; 1: no groups
  int64_t groups_kept = 1;       // the best groups; the experts of the others are out
  bool weight_on_input = false;  // top-1 only: the weight multiplies the expert's input, and the combine uses 1
};

// Errors: kInvalidArgument, naming the field and its legal values (top_k within the experts of the kept groups, groups
// that divide the experts, weight_on_input with top_k 1, ...).
Status check_router_rule(const RouterRule& rule);

// Routes `num_tokens` rows of logits.
//   logits           [num_tokens, num_experts] fp32
//   correction_bias  [num_experts] fp32 or null: added to the score for the choice alone, never to the weight
//   ids              [num_tokens, top_k] out, by descending selection score, ties to the lower expert
//   weights          [num_tokens, top_k] out, fp32, in the same order
// The score of a group is the sum of its two best biased scores where scoring is kSigmoid, its maximum elsewhere; ties
// go to the lower group. A NaN selection score, of an expert or of a group, counts as -infinity for the choice, so a
// row of NaN takes the lowest experts; its weights are NaN (canonical) and stay visible in the output. `rule` must pass
// check_router_rule (QD_CHECK).
void route_tokens(const RouterRule& rule, const float* correction_bias, const float* logits, int64_t num_tokens,
                  int32_t* ids, float* weights, ThreadPool* pool);

}  // namespace quadrille::moe
