// SPDX-License-Identifier: Apache-2.0
// What the descriptions of a layer on a GPU and on a CPU say in the same fields. Called by layer.cpp and
// host_layer.cpp.
#pragma once

#include "core/result.h"
#include "moe/router.h"
#include "quadrille/c_api.h"

namespace quadrille::api {

inline Status check_enum(int32_t value, int32_t last, const char* name, const char* legal) {
  if (value >= 0 && value <= last) return {};
  return make_error(ErrorCode::kUnsupported, "{} {}: legal are {}", name, value, legal);
}

inline Status check_activation(int32_t activation) {
  return check_enum(activation, QD_ACTIVATION_RELU2, "activation",
                    "0 (silu), 1 (clamped swiglu), 2 (gelu tanh), 3 (relu2)");
}

// Of qd_mlp or qd_host_mlp, whose activation has been checked.
template <typename Mlp>
kernels::ActivationRule activation_of(const Mlp& given) {
  return {static_cast<kernels::Activation>(given.activation), given.alpha, given.limit, given.up_offset};
}

// Of qd_layer_desc or qd_host_layer_desc.
template <typename Desc>
Result<moe::RouterRule> read_rule(const Desc& desc) {
  QD_TRY_STATUS(check_enum(desc.scoring, QD_SCORING_SIGMOID, "scoring",
                           "0 (softmax before top-k), 1 (softmax after top-k), 2 (sigmoid)"));
  moe::RouterRule rule;
  rule.scoring = static_cast<moe::Scoring>(desc.scoring);
  rule.num_experts = desc.num_experts;
  rule.top_k = desc.top_k;
  rule.renormalise = desc.renormalise != 0;
  rule.renorm_epsilon = desc.renorm_epsilon;
  rule.routed_scaling = desc.routed_scaling;
  rule.num_groups = desc.num_groups;
  rule.groups_kept = desc.groups_kept;
  rule.weight_on_input = desc.weight_on_input != 0;
  return rule;
}

}  // namespace quadrille::api
