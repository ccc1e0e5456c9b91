// SPDX-License-Identifier: Apache-2.0
// From a batch to its routes and the plan over them: step by step, or for few tokens in one launch.
#include "moe/device_call.h"

namespace quadrille::moe {
namespace {

using kernels::TileList;

kernels::DeviceRouterLogits logits_problem(const DeviceCall& call) {
  const DeviceBatch& batch = call.batch;
  kernels::DeviceRouterLogits logits;
  logits.num_tokens = batch.num_tokens;
  logits.num_experts = call.layer.rule.num_experts;
  logits.k = call.layer.experts.hidden;
  logits.x = batch.x;
  logits.weight = batch.router_weight;
  logits.logits = batch.router_logits_out;
  return logits;
}

kernels::DeviceRouteTokens open_choice(const DeviceCall& call, const float* logits) {
  const device::Stream stream = call.streams.main;
  kernels::DeviceRouteTokens route = route_problem(call.layer.rule, call.batch.num_tokens);
  route.logits = logits;
  route.correction_bias = call.layer.correction_bias;
  route.ids = call.workspace.open<int32_t>(call.parts.ids, stream);
  route.weights = call.workspace.open<float>(call.parts.weights, stream);
  return route;
}

// A plan without its list.
kernels::PlanRoutes open_plan(const DeviceCall& call, const PlanInput& input) {
  const device::Stream stream = call.streams.main;
  kernels::PlanRoutes plan;
  plan.num_tokens = input.num_tokens;
  plan.top_k = call.layer.rule.top_k;
  plan.num_experts = call.layer.experts.gate_up.num_experts;
  plan.ids = input.ids;
  plan.expert_map = input.map;
  plan.map_size = input.map_size;
  plan.offsets = call.workspace.open<int32_t>(call.parts.offsets, stream);
  plan.route_of_slot = call.workspace.open<int32_t>(call.parts.route_of_slot, stream);
  plan.slot_of_route = input.slot_of_route != nullptr ? input.slot_of_route
                                                      : call.workspace.open<int32_t>(call.parts.slot_of_route, stream);
  plan.scratch = call.workspace.open<int32_t>(call.parts.scratch, stream);
  plan.status = call.status;
  return plan;
}

// The list of product `i` with tiles of so many tokens.
TileList open_list(const DeviceCall& call, int i, int64_t tile_tokens, kernels::PlanRoutes* plan) {
  const device::Stream stream = call.streams.main;
  plan->tile_tokens = tile_tokens;
  plan->tiles = call.workspace.open<kernels::TokenTile>(call.parts.lists.tiles[i], stream);
  plan->num_tiles = call.workspace.open<int32_t>(call.parts.lists.count[i], stream);
  plan->max_tiles = kernels::max_route_tiles(plan->num_tokens * plan->top_k, plan->num_experts, tile_tokens);
  TileList list;
  list.tiles = plan->tiles;
  list.num_tiles = plan->num_tiles;
  list.max_tiles = plan->max_tiles;
  return list;
}

PlanInput plan_input(const DeviceCall& call, const int32_t* ids) {
  const int32_t* map = call.layer.expert_map;
  return {call.batch.num_tokens, ids, map, map != nullptr ? call.layer.rule.num_experts : 0, nullptr};
}

bool is_one_launch(const DeviceCall& call, const GemmConfigs& configs) {
  const DeviceBatch& batch = call.batch;
  const RouterRule& rule = call.layer.rule;
  return batch.router_weight != nullptr && configs.one_list() &&
         reinterpret_cast<uintptr_t>(batch.router_weight) % 16 == 0 &&
         call.layer.experts.gate_up.num_experts <= rule.num_experts &&
         kernels::fits_route_and_plan(batch.num_tokens, rule.num_experts, rule.top_k, call.layer.experts.hidden);
}

RoutedRows enqueue_one_launch(const DeviceCall& call, const GemmConfigs& configs) {
  const device::Stream stream = call.streams.main;
  const DeviceBatch& batch = call.batch;
  kernels::RouteAndPlan problem;
  problem.logits = logits_problem(call);
  problem.route = open_choice(call, problem.logits.logits);
  problem.plan = open_plan(call, plan_input(call, problem.route.ids));
  problem.arrivals = batch.arrivals;
  RoutedRows out;
  out.routes = {problem.route.ids, problem.route.weights};
  out.lists[0] = out.lists[1] = open_list(call, 0, configs.first_tokens, &problem.plan);
  if (batch.norm != nullptr && norms_with_router(call, configs)) {
    device::before_step("norm_and_route", stream);
    call.table.norm_and_route({*batch.norm, problem}, stream);
    return out;
  }
  device::before_step("route_and_plan", stream);
  call.table.route_and_plan(problem, stream);
  return out;
}

}  // namespace

kernels::DeviceRouteTokens route_problem(const RouterRule& rule, int64_t num_tokens) {
  kernels::DeviceRouteTokens route;
  route.scoring = rule.scoring;
  route.num_tokens = num_tokens;
  route.num_experts = rule.num_experts;
  route.top_k = rule.top_k;
  route.renormalise = rule.renormalise;
  route.renorm_epsilon = rule.renorm_epsilon;
  route.routed_scaling = rule.routed_scaling;
  route.num_groups = rule.num_groups;
  route.groups_kept = rule.groups_kept;
  return route;
}

DeviceRoutes enqueue_router(const DeviceCall& call) {
  const DeviceBatch& batch = call.batch;
  const device::Stream stream = call.streams.main;
  const float* logits = batch.router_logits;
  if (batch.router_weight != nullptr) {
    const kernels::DeviceRouterLogits problem = logits_problem(call);
    device::before_step("router_logits", stream);
    call.table.router_logits(problem, stream);
    logits = problem.logits;
  }
  if (logits == nullptr) return {batch.topk_ids, batch.topk_weights};
  const kernels::DeviceRouteTokens route = open_choice(call, logits);
  device::before_step("route_tokens", stream);
  call.table.route_tokens(route, stream);
  return {route.ids, route.weights};
}

void enqueue_plan(const DeviceCall& call, const PlanInput& input, const GemmConfigs& configs, TileList (&lists)[2]) {
  const device::Stream stream = call.streams.main;
  kernels::PlanRoutes plan = open_plan(call, input);
  const int64_t tokens[2] = {configs.first_tokens, configs.second_tokens};
  for (int i = 0; i < 2; ++i) {
    if (i == 1 && configs.one_list()) {
      lists[1] = lists[0];
      break;
    }
    lists[i] = open_list(call, i, tokens[i], &plan);
    // The second list comes with a second, equal sort.
    device::before_step("plan_routes", stream);
    call.table.plan_routes(plan, stream);
  }
}

bool norms_with_router(const DeviceCall& call, const GemmConfigs& configs) {
  const int64_t num_tokens = call.batch.num_tokens;
  return is_one_launch(call, configs) && !call.layer.shared &&
         kernels::fits_norm_and_route(num_tokens, route_problem(call.layer.rule, num_tokens),
                                      call.layer.experts.hidden);
}

RoutedRows enqueue_routes(const DeviceCall& call, const GemmConfigs& configs) {
  if (is_one_launch(call, configs)) return enqueue_one_launch(call, configs);
  RoutedRows out;
  out.routes = enqueue_router(call);
  enqueue_plan(call, plan_input(call, out.routes.ids), configs, out.lists);
  return out;
}

}  // namespace quadrille::moe
