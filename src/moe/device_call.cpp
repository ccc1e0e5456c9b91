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

namespace {

Status check_router_of_batch(const DeviceBatch& batch) {
  if (batch.router_logits != nullptr || batch.topk_ids != nullptr || batch.topk_weights != nullptr) {
    return make_error(ErrorCode::kInvalidArgument,
                      "expected a router weight or finished logits or top-k ids, found two of them: leave one null");
  }
  QD_TRY_STATUS(check_pointer(batch.router_weight, 2, "router weight"));
  QD_TRY_STATUS(check_pointer(batch.router_logits_out, 4, "room for the router's logits"));
  return check_pointer(batch.arrivals, 4, "a word for the router's arrivals");
}

}  // namespace

Status check_batch(const DeviceBatch& batch) {
  QD_TRY_STATUS(check_pointer(batch.x, 16, "x"));
  if (batch.combine == nullptr) QD_TRY_STATUS(check_pointer(batch.out, 16, "out"));
  if (batch.act != nullptr) {
    QD_TRY_STATUS(check_pointer(batch.act, 16, "act"));
    QD_TRY_STATUS(check_pointer(batch.act_scale, 4, "activation scales"));
  }
  if (batch.router_weight != nullptr) return check_router_of_batch(batch);
  if (batch.router_logits != nullptr) {
    if (batch.topk_ids != nullptr || batch.topk_weights != nullptr) {
      return make_error(ErrorCode::kInvalidArgument,
                        "expected router logits or top-k ids with weights, found both: leave one of them null");
    }
    return check_pointer(batch.router_logits, 4, "router logits");
  }
  QD_TRY_STATUS(check_pointer(batch.topk_ids, 4, "top-k ids (where there are no router logits)"));
  return check_pointer(batch.topk_weights, 4, "top-k weights");
}

int64_t expected_rows(const DeviceMoeLayer& layer, int64_t num_tokens) {
  const int64_t routes = num_tokens * layer.rule.top_k;
  if (layer.expert_map == nullptr) return routes;
  const int64_t here = layer.experts.gate_up.num_experts;
  return std::min(routes, (routes * here + layer.rule.num_experts - 1) / layer.rule.num_experts);
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
  MlpInput input{num_tokens, call.batch.act, quantize.act_pitch, call.batch.act_scale};
  if (input.act == nullptr) {
    quantize.x = call.batch.x;
    quantize.act = call.workspace.open<uint8_t>(call.parts.shared.act, main);
    quantize.act_scale = call.workspace.open<float>(call.parts.shared.act_scale, main);
    device::before_step("quantize_shared", main);
    call.table.quantize_tokens(quantize, main);
    input.act = quantize.act;
    input.scale = quantize.act_scale;
  }
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
