// SPDX-License-Identifier: Apache-2.0
// Each step tells the harness before it is enqueued, and opens a part of the workspace where its writer comes.
#include "moe/device_call.h"

#include <algorithm>

#include "moe/device_check.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {

using device::HandOver;
using kernels::TileList;

Status check_experts_of_rule(const DeviceMoeLayer& layer) {
  QD_TRY_STATUS(check_router_rule(layer.rule));
  QD_TRY_STATUS(check_device_mlp(layer.experts, "experts", layer.ranks.is_split()));
  const int64_t here = layer.experts.gate_up.num_experts;
  if (layer.expert_map != nullptr || here == layer.rule.num_experts) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "the router knows {} experts and {} are here: expected as many, or an expert map",
                    layer.rule.num_experts, here);
}

Status check_shared(const DeviceMoeLayer& layer) {
  if (!layer.shared) {
    if (layer.shared_gate_weight == nullptr) return {};
    return make_error(ErrorCode::kInvalidArgument, "a gate of a shared expert, and no shared expert");
  }
  QD_TRY_STATUS(check_device_mlp(*layer.shared, "shared expert", layer.ranks.is_split()));
  if (layer.shared->hidden != layer.experts.hidden || layer.shared->gate_up.num_experts != 1) {
    return make_error(ErrorCode::kInvalidArgument,
                      "shared expert: expected 1 expert of hidden size {}, found {} of hidden size {}",
                      layer.experts.hidden, layer.shared->gate_up.num_experts, layer.shared->hidden);
  }
  return {};
}

Status check_batch(const DeviceBatch& batch) {
  QD_TRY_STATUS(check_pointer(batch.x, 16, "x"));
  QD_TRY_STATUS(check_pointer(batch.out, 16, "out"));
  if (batch.router_logits != nullptr) {
    if (batch.topk_ids != nullptr || batch.topk_weights != nullptr) {
      return make_error(ErrorCode::kInvalidArgument,
                        "expected router logits or top-k ids with weights, found both: leave one of them null");
    }
    QD_TRY_STATUS(check_pointer(batch.router_logits, 4, "router logits"));
  } else {
    QD_TRY_STATUS(check_pointer(batch.topk_ids, 4, "top-k ids (where there are no router logits)"));
    QD_TRY_STATUS(check_pointer(batch.topk_weights, 4, "top-k weights"));
  }
  return {};
}

int64_t expected_rows(const DeviceMoeLayer& layer, int64_t num_tokens) {
  const int64_t routes = num_tokens * layer.rule.top_k;
  if (layer.expert_map == nullptr) return routes;
  const int64_t here = layer.experts.gate_up.num_experts;
  return std::min(routes, (routes * here + layer.rule.num_experts - 1) / layer.rule.num_experts);
}

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
  if (batch.router_logits == nullptr) return {batch.topk_ids, batch.topk_weights};
  const device::Stream stream = call.streams.main;
  kernels::DeviceRouteTokens route = route_problem(call.layer.rule, batch.num_tokens);
  route.logits = batch.router_logits;
  route.correction_bias = call.layer.correction_bias;
  route.ids = call.workspace.open<int32_t>(call.parts.ids, stream);
  route.weights = call.workspace.open<float>(call.parts.weights, stream);
  device::before_step("route_tokens", stream);
  call.table.route_tokens(route, stream);
  return {route.ids, route.weights};
}

void enqueue_plan(const DeviceCall& call, const PlanInput& input, const GemmConfigs& configs, TileList (&lists)[2]) {
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
  const int64_t tokens[2] = {configs.first_tokens, configs.second_tokens};
  for (int i = 0; i < 2; ++i) {
    if (i == 1 && configs.one_list()) {
      lists[1] = lists[0];
      break;
    }
    plan.tile_tokens = tokens[i];
    plan.tiles = call.workspace.open<kernels::TokenTile>(call.parts.lists.tiles[i], stream);
    plan.num_tiles = call.workspace.open<int32_t>(call.parts.lists.count[i], stream);
    plan.max_tiles = kernels::max_route_tiles(plan.num_tokens * plan.top_k, plan.num_experts, tokens[i]);
    // The second list comes with a second, equal sort.
    device::before_step("plan_routes", stream);
    call.table.plan_routes(plan, stream);
    lists[i].tiles = plan.tiles;
    lists[i].num_tiles = plan.num_tiles;
    lists[i].max_tiles = plan.max_tiles;
  }
}

Absmax open_absmax(const DeviceCall& call) {
  if (!call.layer.ranks.agrees_scale()) return {};
  const int64_t routes = call.num_routes;
  Absmax absmax;
  absmax.routes = call.workspace.open<float>(call.parts.absmax, call.streams.main);
  absmax.count = routes;
  if (!call.layer.shared) return absmax;
  absmax.shared = absmax.routes + routes;
  absmax.count += call.batch.num_tokens;
  return absmax;
}

bool runs_beside(const DeviceCall& call) {
  return call.layer.shared && call.batch.num_tokens > 0 && call.streams.side.handle != nullptr;
}

Result<SharedExpert> enqueue_shared(const DeviceCall& call, const GemmConfigs& configs, float* absmax) {
  if (!call.layer.shared || call.batch.num_tokens == 0) return SharedExpert{};
  const DeviceMlp& mlp = *call.layer.shared;
  const int64_t num_tokens = call.batch.num_tokens;
  const bool beside = runs_beside(call);
  const device::Stream main = call.streams.main;
  const device::Stream stream = beside ? call.streams.side : main;
  kernels::QuantizeTokens quantize;
  quantize.num_tokens = num_tokens;
  quantize.k = mlp.hidden;
  quantize.act_pitch = act_pitch(mlp.hidden);
  quantize.x = call.batch.x;
  quantize.act = call.workspace.open<uint8_t>(call.parts.shared.act, main);
  quantize.act_scale = call.workspace.open<float>(call.parts.shared.act_scale, main);
  device::before_step("quantize_shared", main);
  call.table.quantize_tokens(quantize, main);
  if (beside) QD_TRY_STATUS(device::hand_over(HandOver::kSharedBegins, call.streams.shared_begins, main, stream));

  SharedExpert out;
  if (call.layer.shared_gate_weight != nullptr) {
    auto* gate = call.workspace.open<float>(call.parts.shared_gate, stream);
    device::before_step("shared_gate", stream);
    call.table.router_logits({num_tokens, 1, mlp.hidden, true, call.batch.x, call.layer.shared_gate_weight, gate},
                             stream);
    out.gate = gate;
  }
  const TileList list = single_list(num_tokens);
  const MlpInput input{num_tokens, quantize.act, quantize.act_pitch, quantize.act_scale};
  out.call.emplace(MlpCall{call.table,
                           mlp,
                           call.layer.ranks,
                           input,
                           {list, list},
                           configs,
                           call.workspace,
                           call.parts.shared,
                           stream,
                           call.watch,
                           true});
  enqueue_up(*out.call, absmax);
  return out;
}

// The absmax of all ranks, on the main stream; the side stream's part goes there and comes back. The events of the
// other two hand-overs serve again: each wait refers to the record just before it.
Status exchange_absmax(const DeviceCall& call, const Absmax& absmax) {
  const device::Stream main = call.streams.main, side = call.streams.side;
  const bool beside = runs_beside(call);
  if (beside) QD_TRY_STATUS(device::hand_over(HandOver::kSharedSplit, call.streams.shared_ends, side, main));
  device::before_step("agree_on_absmax", main);
  QD_TRY_STATUS(call.layer.ranks.tensor->all_reduce_max(absmax.routes, static_cast<size_t>(absmax.count), main));
  if (beside) QD_TRY_STATUS(device::hand_over(HandOver::kSharedAgreed, call.streams.shared_begins, main, side));
  return {};
}

}  // namespace quadrille::moe
