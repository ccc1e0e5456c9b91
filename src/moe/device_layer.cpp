// SPDX-License-Identifier: Apache-2.0
// The routed form. On the main stream: quantise for the shared expert, route, plan, quantise, the two products,
// combine; the shared expert runs on the side stream between its two hand-overs. Tensor-parallel ranks do two
// collectives, both on the main stream: the absmax of all rows of h, routed and shared, between the two products (the
// side stream hands its rows over and gets them back), and the sum after the combine.
#include "moe/device_layer.h"

#include <algorithm>

#include "moe/device_check.h"
#include "moe/device_steps.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {
namespace {

using device::HandOver;
using kernels::TileList;

// Everything that one call's steps read.
struct Call {
  const kernels::DeviceTable& table;
  const DeviceMoeLayer& layer;
  const DeviceBatch& batch;
  Workspace workspace;
  LayerParts parts;
  DeviceStreams streams;
  uint32_t* status = nullptr;
};

Status check_batch(const DeviceMoeLayer& layer, const DeviceBatch& batch) {
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
  QD_TRY_STATUS(check_mlp_memory(layer.experts, "experts"));
  if (layer.shared) QD_TRY_STATUS(check_mlp_memory(*layer.shared, "shared expert"));
  return {};
}

// Expected rows over the experts that are here.
int64_t expected_rows(const DeviceMoeLayer& layer, int64_t num_tokens) {
  const int64_t routes = num_tokens * layer.rule.top_k;
  if (layer.expert_map == nullptr) return routes;
  const int64_t here = layer.experts.gate_up.num_experts;
  return std::min(routes, (routes * here + layer.rule.num_experts - 1) / layer.rule.num_experts);
}

struct Routes {
  const int32_t* ids;
  const float* weights;
};

Routes enqueue_router(const Call& call) {
  const DeviceBatch& batch = call.batch;
  if (batch.router_logits == nullptr) return {batch.topk_ids, batch.topk_weights};
  const RouterRule& rule = call.layer.rule;
  const device::Stream stream = call.streams.main;
  kernels::DeviceRouteTokens route;
  route.scoring = rule.scoring;
  route.num_tokens = batch.num_tokens;
  route.num_experts = rule.num_experts;
  route.top_k = rule.top_k;
  route.renormalise = rule.renormalise;
  route.renorm_epsilon = rule.renorm_epsilon;
  route.routed_scaling = rule.routed_scaling;
  route.num_groups = rule.num_groups;
  route.groups_kept = rule.groups_kept;
  route.logits = batch.router_logits;
  route.correction_bias = call.layer.correction_bias;
  route.ids = call.workspace.open<int32_t>(call.parts.ids, stream);
  route.weights = call.workspace.open<float>(call.parts.weights, stream);
  device::before_step("route_tokens", stream);
  call.table.route_tokens(route, stream);
  return {route.ids, route.weights};
}

// Sorts the routes and fills a tile list for each product.
void enqueue_plan(const Call& call, const int32_t* ids, const GemmConfigs& configs, TileList (&lists)[2]) {
  const device::Stream stream = call.streams.main;
  kernels::PlanRoutes plan;
  plan.num_tokens = call.batch.num_tokens;
  plan.top_k = call.layer.rule.top_k;
  plan.num_experts = call.layer.experts.gate_up.num_experts;
  plan.ids = ids;
  plan.expert_map = call.layer.expert_map;
  plan.map_size = call.layer.expert_map != nullptr ? call.layer.rule.num_experts : 0;
  plan.offsets = call.workspace.open<int32_t>(call.parts.offsets, stream);
  plan.route_of_slot = call.workspace.open<int32_t>(call.parts.route_of_slot, stream);
  plan.slot_of_route = call.workspace.open<int32_t>(call.parts.slot_of_route, stream);
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

// The absmax of the rows of h that ranks exchange: those of the routes, then those of the shared expert.
struct Absmax {
  float* routes = nullptr;
  float* shared = nullptr;
  int64_t count = 0;
};

Absmax open_absmax(const Call& call) {
  if (!call.layer.ranks.agrees_scale()) return {};
  const int64_t routes = call.batch.num_tokens * call.layer.rule.top_k;
  Absmax absmax;
  absmax.routes = call.workspace.open<float>(call.parts.absmax, call.streams.main);
  absmax.count = routes;
  if (!call.layer.shared) return absmax;
  absmax.shared = absmax.routes + routes;
  absmax.count += call.batch.num_tokens;
  return absmax;
}

// The routed experts up to h.
MlpCall enqueue_experts(const Call& call, const Routes& routes, const GemmConfigs& configs, float* absmax) {
  const device::Stream stream = call.streams.main;
  const DeviceMlp& mlp = call.layer.experts;
  TileList lists[2];
  enqueue_plan(call, routes.ids, configs, lists);
  kernels::QuantizeTokens quantize;
  quantize.num_tokens = call.batch.num_tokens;
  quantize.top_k = call.layer.rule.top_k;
  quantize.k = mlp.hidden;
  quantize.act_pitch = act_pitch(mlp.hidden);
  quantize.x = call.batch.x;
  quantize.slot_of_route = call.workspace.at<int32_t>(call.parts.slot_of_route);
  quantize.route_weight = call.layer.rule.weight_on_input ? routes.weights : nullptr;
  quantize.act = call.workspace.open<uint8_t>(call.parts.experts.act, stream);
  quantize.act_scale = call.workspace.open<float>(call.parts.experts.act_scale, stream);
  device::before_step("quantize_tokens", stream);
  call.table.quantize_tokens(quantize, stream);
  const MlpInput input{quantize.num_tokens * quantize.top_k, quantize.act, quantize.act_pitch, quantize.act_scale};
  MlpCall mlp_call{call.table,         mlp,   call.layer.ranks, input, {lists[0], lists[1]}, configs, call.workspace,
                   call.parts.experts, stream};
  // Slots come first; how many there are is behind the last expert's.
  enqueue_up(mlp_call, absmax, call.workspace.at<int32_t>(call.parts.offsets) + mlp.gate_up.num_experts);
  return mlp_call;
}

// The shared expert up to h, on the side stream where there is one. Its input is quantised on the main stream, which is
// what the side stream waits for.
struct SharedExpert {
  std::optional<MlpCall> call;  // none: there is no shared expert
  const float* gate = nullptr;  // [num_tokens]
};

bool runs_beside(const Call& call) {
  return call.layer.shared && call.streams.side.handle != nullptr;
}

Result<SharedExpert> enqueue_shared(const Call& call, const GemmConfigs& configs, float* absmax) {
  if (!call.layer.shared) return SharedExpert{};
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
  out.call.emplace(MlpCall{
      call.table, mlp, call.layer.ranks, input, {list, list}, configs, call.workspace, call.parts.shared, stream});
  enqueue_up(*out.call, absmax);
  return out;
}

// The absmax of all ranks, on the main stream; the side stream's part goes there and comes back. The events of the
// other two hand-overs serve again: each wait refers to the record just before it.
Status exchange_absmax(const Call& call, const Absmax& absmax) {
  const device::Stream main = call.streams.main, side = call.streams.side;
  const bool beside = runs_beside(call);
  if (beside) QD_TRY_STATUS(device::hand_over(HandOver::kSharedSplit, call.streams.shared_ends, side, main));
  device::before_step("agree_on_absmax", main);
  QD_TRY_STATUS(call.layer.ranks.tensor->all_reduce_max(absmax.routes, static_cast<size_t>(absmax.count), main));
  if (beside) QD_TRY_STATUS(device::hand_over(HandOver::kSharedAgreed, call.streams.shared_begins, main, side));
  return {};
}

// The rows of both kinds of experts: bf16, or partial rows in fp32.
struct Rows {
  const void* routed = nullptr;        // [slots, hidden]
  const void* shared = nullptr;        // [num_tokens, hidden]
  const float* shared_gate = nullptr;  // [num_tokens]
};

template <typename Problem, typename Value>
Problem combine_problem(const Call& call, const Routes& routes, const Rows& rows, Value* out) {
  Problem combine;
  combine.num_tokens = call.batch.num_tokens;
  combine.top_k = call.layer.rule.top_k;
  combine.width = call.layer.experts.hidden;
  combine.rows = static_cast<const Value*>(rows.routed);
  combine.slot = call.workspace.at<int32_t>(call.parts.slot_of_route);
  combine.weight = call.layer.rule.weight_on_input ? nullptr : routes.weights;
  combine.shared = static_cast<const Value*>(rows.shared);
  combine.shared_gate = rows.shared_gate;
  combine.out = out;
  return combine;
}

Status enqueue_combine(const Call& call, const Routes& routes, const Rows& rows) {
  const device::Stream stream = call.streams.main;
  if (!call.layer.ranks.is_split()) {
    device::before_step("combine", stream);
    call.table.combine(combine_problem<kernels::DeviceCombine>(call, routes, rows, call.batch.out), stream);
    return {};
  }
  auto* partial = call.workspace.open<float>(call.parts.partial, stream);
  device::before_step("combine_partial", stream);
  call.table.combine_partial(combine_problem<kernels::DeviceCombinePartial>(call, routes, rows, partial), stream);
  const int64_t count = call.batch.num_tokens * call.layer.experts.hidden;
  return enqueue_sum(call.table, call.layer.ranks, partial, count, call.batch.out, stream);
}

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

}  // namespace

Status can_run(const DeviceMoeLayer& layer, int64_t max_tokens) {
  QD_TRY_STATUS(check_experts_of_rule(layer));
  QD_TRY_STATUS(check_shared(layer));
  if (max_tokens >= 0 && max_tokens <= kMaxRows / layer.rule.top_k) return {};
  return make_error(ErrorCode::kInvalidArgument, "expected 0..{} tokens of {} choices in one call, found {}",
                    kMaxRows / layer.rule.top_k, layer.rule.top_k, max_tokens);
}

size_t workspace_bytes(const DeviceMoeLayer& layer, int64_t max_tokens, const DeviceLayerOptions&) {
  return can_run(layer, max_tokens) ? plan_layer_parts(layer, max_tokens).total : 0;
}

Status run_device_layer(const kernels::DeviceTable& table, const DeviceMoeLayer& layer, const DeviceBatch& batch,
                        void* workspace, size_t workspace_size, const DeviceStreams& streams, uint32_t* status,
                        const DeviceLayerOptions& options) {
  QD_TRY_STATUS(can_run(layer, batch.num_tokens));
  QD_TRY_STATUS(check_streams(streams, layer.shared.has_value()));
  if (batch.num_tokens == 0) return {};
  QD_TRY_STATUS(check_batch(layer, batch));
  Call call{table, layer, batch, Workspace(workspace), plan_layer_parts(layer, batch.num_tokens), streams};
  QD_TRY_STATUS(check_workspace(workspace, workspace_size, call.parts.total));
  QD_TRY(const GemmConfigs configs,
         choose_configs(table, layer.experts, expected_rows(layer, batch.num_tokens), options));
  GemmConfigs shared_configs;
  if (layer.shared) {
    QD_TRY(shared_configs, choose_configs(table, *layer.shared, batch.num_tokens, options));
  }

  QD_TRY(call.status, open_status(status, call.workspace, call.parts.status, streams.main));
  const Absmax absmax = open_absmax(call);
  QD_TRY(const SharedExpert shared, enqueue_shared(call, shared_configs, absmax.shared));
  Rows rows;
  rows.shared_gate = shared.gate;
  // With nothing to wait for the shared expert is enqueued to its end.
  const bool agrees = layer.ranks.agrees_scale();
  if (shared.call && !agrees) rows.shared = enqueue_down(*shared.call);
  const Routes routes = enqueue_router(call);
  const MlpCall experts = enqueue_experts(call, routes, configs, absmax.routes);
  if (agrees) {
    QD_TRY_STATUS(exchange_absmax(call, absmax));
    if (shared.call) rows.shared = enqueue_down(*shared.call, absmax.shared);
  }
  rows.routed = enqueue_down(experts, absmax.routes);
  if (runs_beside(call)) {
    QD_TRY_STATUS(device::hand_over(HandOver::kSharedEnds, streams.shared_ends, streams.side, streams.main));
  }
  return enqueue_combine(call, routes, rows);
}

}  // namespace quadrille::moe
