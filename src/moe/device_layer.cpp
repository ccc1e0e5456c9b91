// SPDX-License-Identifier: Apache-2.0
// The routed form. On the main stream: quantise for the shared expert, route, plan, quantise, the two products,
// combine; the shared expert runs on the side stream between its two hand-overs. Tensor-parallel ranks do two
// collectives, both on the main stream: the absmax of all rows of h, routed and shared, between the two products (the
// side stream hands its rows over and gets them back), and the sum after the combine.
#include "moe/device_layer.h"

#include "moe/device_call.h"
#include "moe/device_check.h"
#include "moe/device_watch.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {
namespace {

using device::HandOver;

// The rows of every slot, quantised.
MlpInput enqueue_slots(const DeviceCall& call, const RoutedRows& routed) {
  const device::Stream stream = call.streams.main;
  const DeviceMlp& mlp = call.layer.experts;
  kernels::QuantizeTokens quantize;
  quantize.num_tokens = call.batch.num_tokens;
  quantize.top_k = call.layer.rule.top_k;
  quantize.k = mlp.hidden;
  quantize.act_pitch = act_pitch(mlp.hidden);
  quantize.x = call.batch.x;
  quantize.slot_of_route = call.workspace.at<int32_t>(call.parts.slot_of_route);
  quantize.route_weight = call.layer.rule.weight_on_input ? routed.routes.weights : nullptr;
  quantize.act = call.workspace.open<uint8_t>(call.parts.experts.act, stream);
  quantize.act_scale = call.workspace.open<float>(call.parts.experts.act_scale, stream);
  device::before_step("quantize_tokens", stream);
  call.table.quantize_tokens(quantize, stream);
  return {quantize.num_tokens * quantize.top_k, quantize.act, quantize.act_pitch, quantize.act_scale};
}

// Of few tokens the products make their input themselves. No expert has more rows than there are tokens: the ids are
// the router's, so no token names an expert twice.
bool joins_products(const DeviceCall& call, const GemmConfigs& configs) {
  return call.joins_steps && call.watch == nullptr && call.batch.topk_ids == nullptr && configs.one_list() &&
         configs.first_tokens == kMinTileTokens && call.batch.num_tokens <= kernels::kMostInputRows;
}

// The codes of the batch, gathered by GEMM1.
bool gathers_codes(const DeviceCall& call, const GemmConfigs& configs) {
  const DeviceLinear& linear = call.layer.experts.gate_up;
  return joins_products(call, configs) && call.batch.act != nullptr && !call.layer.rule.weight_on_input &&
         kernels::gathers_gemm_input(linear.numerics, linear.group_size) && linear.k <= kernels::kMostInputValues;
}

// The rows of h, quantised by GEMM2.
bool quantises_in_down(const DeviceCall& call, const GemmConfigs& configs) {
  const DeviceMlp& mlp = call.layer.experts;
  return joins_products(call, configs) && !call.layer.ranks.is_split() && mlp.down_offset == 0 &&
         mlp.down.k == mlp.width &&
         kernels::fits_gemm_input(mlp.down.numerics, mlp.down.group_size, kernels::kMostInputRows, mlp.down.k);
}

MlpInput gathered_input(const DeviceCall& call) {
  const int64_t top_k = call.layer.rule.top_k;
  MlpInput input{call.num_routes, call.batch.act, act_pitch(call.layer.experts.hidden), call.batch.act_scale};
  input.source_row = call.workspace.at<int32_t>(call.parts.route_of_slot);
  input.source_divisor = top_k;
  return input;
}

// The routed experts up to h.
MlpCall enqueue_experts(const DeviceCall& call, const RoutedRows& routed, const GemmConfigs& configs, float* absmax) {
  const DeviceMlp& mlp = call.layer.experts;
  const bool gathers = gathers_codes(call, configs);
  const MlpInput input = gathers ? gathered_input(call) : enqueue_slots(call, routed);
  MlpCall mlp_call{call.table,
                   mlp,
                   call.layer.ranks,
                   input,
                   {routed.lists[0], routed.lists[1]},
                   configs,
                   call.workspace,
                   call.parts.experts,
                   call.streams.main,
                   call.watch};
  mlp_call.list_is_older = !gathers;  // the slots' quantisation is between
  mlp_call.quantises_in_down = quantises_in_down(call, configs);
  // Slots come first; how many there are is behind the last expert's.
  enqueue_up(mlp_call, absmax, call.workspace.at<int32_t>(call.parts.offsets) + mlp.gate_up.num_experts);
  return mlp_call;
}

// The rows of both kinds of experts: bf16, or partial rows in fp32.
struct Rows {
  const void* routed = nullptr;        // [slots, hidden]
  const void* shared = nullptr;        // [num_tokens, hidden]
  const float* shared_gate = nullptr;  // [num_tokens]
};

template <typename Problem, typename Value>
Problem combine_problem(const DeviceCall& call, const DeviceRoutes& routes, const Rows& rows, Value* out) {
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

Status enqueue_combine(const DeviceCall& call, const DeviceRoutes& routes, const Rows& rows) {
  const device::Stream stream = call.streams.main;
  if (call.batch.combine != nullptr) {
    *call.batch.combine = combine_problem<kernels::DeviceCombine>(call, routes, rows, call.batch.out);
    return {};
  }
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

Status check_combine(const DeviceMoeLayer& layer, const DeviceBatch& batch, const DeviceLayerOptions& options) {
  if (batch.combine == nullptr || (!layer.ranks.is_split() && options.observer == nullptr)) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "a combine that is left to the caller, and tensor-parallel ranks or an observer, who need it here");
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
  QD_TRY_STATUS(check_batch(batch));
  QD_TRY_STATUS(check_combine(layer, batch, options));
  QD_TRY_STATUS(check_mlp_memory(layer.experts, "experts"));
  if (layer.shared) QD_TRY_STATUS(check_mlp_memory(*layer.shared, "shared expert"));
  DeviceLayerWatch watch(options.observer);
  DeviceCall call{table,
                  layer,
                  batch,
                  Workspace(workspace),
                  plan_layer_parts(layer, batch.num_tokens),
                  streams,
                  nullptr,
                  batch.num_tokens * layer.rule.top_k,
                  options.observer != nullptr ? &watch : nullptr,
                  options.joins_steps};
  QD_TRY_STATUS(check_workspace(workspace, workspace_size, call.parts.total));
  QD_TRY(const GemmConfigs configs,
         choose_configs(table, layer.experts, expected_rows(layer, batch.num_tokens), options));
  GemmConfigs shared_configs;
  if (layer.shared) {
    QD_TRY(shared_configs, choose_configs(table, *layer.shared, batch.num_tokens, options));
  }

  QD_TRY(call.status, open_status(status, call.workspace, call.parts.status, streams.main));
  if (batch.norm != nullptr && !norms_with_router(call, configs)) {
    device::before_step("add_norm", streams.main);
    table.add_norm(*batch.norm, streams.main);
  }
  const Absmax absmax = open_absmax(call);
  QD_TRY(const SharedExpert shared, enqueue_shared(call, shared_configs, absmax.shared));
  Rows rows;
  rows.shared_gate = shared.gate;
  // With nothing to wait for the shared expert is enqueued to its end.
  const bool agrees = layer.ranks.agrees_scale();
  if (shared.call && !agrees) rows.shared = enqueue_down(*shared.call);
  const RoutedRows routed = enqueue_routes(call, configs);
  const MlpCall experts = enqueue_experts(call, routed, configs, absmax.routes);
  if (agrees) {
    QD_TRY_STATUS(exchange_absmax(call, absmax));
    if (shared.call) rows.shared = enqueue_down(*shared.call, absmax.shared);
  }
  rows.routed = enqueue_down(experts, absmax.routes);
  if (runs_beside(call)) {
    QD_TRY_STATUS(device::hand_over(HandOver::kSharedEnds, streams.shared_ends, streams.side, streams.main));
  }
  QD_TRY_STATUS(enqueue_combine(call, routed.routes, rows));
  return call.watch != nullptr ? watch.tell(call) : Status();
}

}  // namespace quadrille::moe
