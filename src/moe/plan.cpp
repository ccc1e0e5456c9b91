// SPDX-License-Identifier: Apache-2.0
// The counting sort behind plan.h.
#include "moe/plan.h"

#include <limits>

#include "core/check.h"

namespace quadrille::moe {

Status build_plan(std::span<const int32_t> ids, int64_t num_tokens, int64_t top_k, int64_t num_experts, Plan* plan) {
  QD_CHECK(num_tokens >= 0 && top_k >= 1 && num_experts >= 0, "shapes of a plan");
  QD_CHECK(static_cast<int64_t>(ids.size()) == num_tokens * top_k, "ids must be [num_tokens, top_k]");
  const int64_t num_routes = num_tokens * top_k;
  if (num_routes > std::numeric_limits<int32_t>::max()) {
    return make_error(ErrorCode::kInvalidArgument, "plan: {} tokens of {} routes each; at most 2^31 - 1 routes fit",
                      num_tokens, top_k);
  }
  plan->num_tokens = num_tokens;
  plan->top_k = top_k;
  // Counts go one place up, so that the running sum leaves the first slot of each expert.
  plan->offsets.assign(num_experts + 1, 0);
  for (int64_t route = 0; route < num_routes; ++route) {
    const int32_t id = ids[route];
    if (id < -1 || id >= num_experts) {
      return make_error(ErrorCode::kInvalidArgument,
                        "plan: token {}, choice {}: expert {}; legal are 0 to {}, or -1 for an expert elsewhere",
                        route / top_k, route % top_k, id, num_experts - 1);
    }
    if (id >= 0) ++plan->offsets[id + 1];
  }
  for (int64_t e = 0; e < num_experts; ++e) plan->offsets[e + 1] += plan->offsets[e];

  plan->token_of_slot.resize(plan->num_slots());
  plan->route_of_slot.resize(plan->num_slots());
  plan->slot_of_route.resize(num_routes);
  std::vector<int64_t> next(plan->offsets.begin(), plan->offsets.end() - 1);
  for (int64_t route = 0; route < num_routes; ++route) {
    const int32_t id = ids[route];
    if (id < 0) {
      plan->slot_of_route[route] = -1;
      continue;
    }
    const int64_t slot = next[id]++;
    plan->token_of_slot[slot] = static_cast<int32_t>(route / top_k);
    plan->route_of_slot[slot] = static_cast<int32_t>(route);
    plan->slot_of_route[route] = static_cast<int32_t>(slot);
  }
  return {};
}

}  // namespace quadrille::moe
