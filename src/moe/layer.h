// SPDX-License-Identifier: Apache-2.0
// The MoE layer: route, plan, quantise, GEMM1, gated activation, quantise, GEMM2, combine, as docs/numerics.md section
// 4 defines it to the bit. Also the gated feed-forward of shared experts and dense layers, which are the same with one
// expert. Called by the decoder and by the command line's `layer`.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/result.h"
#include "moe/expert_guard.h"
#include "moe/layer_observer.h"
#include "moe/linear.h"
#include "moe/placement.h"
#include "moe/plan.h"
#include "moe/router.h"

namespace quadrille::moe {

// gate_up has N = 2 * width rows: the gate rows, then the up rows; N = width where the activation is not gated. down
// has N = hidden, K = width. Of a tensor-parallel shard, width is what this rank holds, and a row of down's input has
// down_offset zeros, the width values, and zeros up to down's K.
struct GatedMlp {
  int64_t hidden = 0;
  int64_t width = 0;
  kernels::ActivationRule activation;
  Linear gate_up;
  Linear down;
  int64_t down_offset = 0;
  int64_t down_k = 0;  // 0: width
};

struct MoeLayer {
  RouterRule rule;                          // num_experts, top_k and weight_on_input also where ids come from outside
  const uint16_t* router_weight = nullptr;  // [num_experts, hidden] bf16; null: only run with given routes
  const float* correction_bias = nullptr;   // [num_experts] or null
  // Which rank holds which experts; null: all are here. Else `experts` has the matrices of rank `expert_rank`, one for
  // each of its slots (those of a free slot are never read), and num_experts 0 where it has no slot.
  const Placement* placement = nullptr;
  int expert_rank = 0;
  GatedMlp experts;
  ExpertGuard* guard = nullptr;    // asked before the experts compute; of a layer without placement; or null
  std::optional<GatedMlp> shared;  // one expert as wide as all shared experts together
  const uint16_t* shared_gate_weight = nullptr;  // [1, hidden] bf16: sigmoid gate of the shared expert; null: 1
};

// Shapes and group sizes against each other and against the rules of the kernels; call once when a layer is made.
Status check_layer(const MoeLayer& layer);
Status check_mlp(const GatedMlp& mlp, int64_t num_experts = 1);
// The numbers of a rule: kInvalidArgument for a limit that is not positive, or an alpha or offset that is not finite.
Status check_activation(const kernels::ActivationRule& rule);

// Routes of a batch of tokens.
struct Routes {
  const int32_t* ids = nullptr;    // [num_tokens, top_k]; -1: not here
  const float* weights = nullptr;  // [num_tokens, top_k]
};

// Router logits -> ids and weights. logits, ids, weights: [num_tokens, num_experts], [num_tokens, top_k] twice, out.
void route(const MoeLayer& layer, const float* x, int64_t num_tokens, const Execution& execution, float* logits,
           int32_t* ids, float* weights);

// out [num_tokens, hidden] = the layer's output for x [num_tokens, hidden] and the given routes. `x` is already rounded
// in round bf16. Scratch comes from the execution's arena and stays taken. Zero tokens and empty experts are fine.
// With ranks `layer` is this rank's shard; every rank calls it with the same x and routes, and gets the same output.
// With a placement over expert ranks every one of them calls it, each with tokens and routes of its own, zero tokens
// too (the ranks of a tensor-parallel group with the same): the bits are those of one expert rank.
// Errors: kInvalidArgument for an id outside of the experts; those of the communicator and of the guard.
Status run_layer(const MoeLayer& layer, const float* x, int64_t num_tokens, const Routes& routes,
                 const Execution& execution, float* out, LayerObserver* observer = nullptr);

// The gated feed-forward of one expert: out [num_rows, hidden], rounded as a GEMM2 row is. `input` may be shared with
// other layers that read the same rows. The observer sees gemm1_out to gemm2_out. With ranks as run_layer(). Errors:
// those of the communicator.
Status run_mlp(const GatedMlp& mlp, LinearInput* input, const Execution& execution, float* out,
               LayerObserver* observer = nullptr);

}  // namespace quadrille::moe
