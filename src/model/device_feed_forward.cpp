// SPDX-License-Identifier: Apache-2.0
// The feed-forward of a layer on a GPU in each of its kinds.
#include "model/device_decoder.h"
#include "model/device_observe.h"
#include "moe/device_steps.h"

namespace quadrille::model {

kernels::DeviceRouterLogits DeviceDecoder::open_router(const DeviceLayerView& layer, int64_t num_tokens) {
  auto* logits = memory_.open<float>(parts_.router_logits, stream_);
  return {num_tokens, config_.router.num_experts, config_.hidden_size, false, input_rows(), layer.router, logits};
}

Status DeviceDecoder::enqueue_router(const DeviceLayerView& layer, int64_t num_tokens) {
  const kernels::DeviceRouterLogits logits = open_router(layer, num_tokens);
  device::before_step("router_logits", stream_);
  table_.router_logits(logits, stream_);
  return show_router(num_tokens);
}

// A shared expert reads them as they are; routed ones are quantised by slots.
bool DeviceDecoder::feed_forward_takes_codes(const DeviceLayerView& layer) {
  return layer.moe.has_value() && layer.moe->shared.has_value();
}

bool DeviceDecoder::takes_gathered_codes(const DeviceLayerView& layer, int64_t num_tokens) const {
  return joins_steps_ && observer_ == nullptr && layer.moe && num_tokens <= kernels::kMostInputRows &&
         kernels::gathers_gemm_input(layer.moe->experts.gate_up.numerics, layer.moe->experts.gate_up.group_size);
}

bool DeviceDecoder::norms_with_router(const DeviceLayerView& layer, int64_t num_tokens) const {
  return joins_steps_ && layer.moe && !layer.moe->shared && observer_ == nullptr && !shard_.is_split() &&
         kernels::fits_norm_and_route(num_tokens, moe::route_problem(config_.router, num_tokens), config_.hidden_size);
}

Status DeviceDecoder::enqueue_feed_forward(int64_t layer, int64_t num_tokens) {
  return enqueue_feed_forward(layer, num_tokens, {});
}

// normed -> update, or rows that are not combined yet.
Status DeviceDecoder::enqueue_feed_forward(int64_t index, int64_t num_tokens, const FeedForwardForm& form) {
  const DeviceLayerView& layer = weights_.layers[static_cast<size_t>(index)];
  if (!layer.is_moe()) {
    return enqueue_dense(Module::kMlp, *layer.dense, normed_input(num_tokens),
                         memory_.open<uint16_t>(parts_.update, stream_));
  }
  if (!layer.moe) return enqueue_bf16_moe(layer, num_tokens, form);
  moe::DeviceBatch batch;
  batch.num_tokens = num_tokens;
  batch.x = input_rows();
  if (observer_ != nullptr) {
    QD_TRY_STATUS(enqueue_router(layer, num_tokens));
    batch.router_logits = memory_.at<float>(parts_.router_logits);
  } else {
    batch.router_weight = layer.router;
    batch.router_logits_out = open_router(layer, num_tokens).logits;
    batch.arrivals = memory_.at<uint32_t>(parts_.router_arrivals);
  }
  if (form.has_codes) {
    const Input input = normed_input(num_tokens);
    batch.act = input.act;
    batch.act_scale = input.act_scale;
  }
  batch.norm = form.norm;
  if (form.leaves_combine) {
    batch.combine = &pending_combine_;
  } else {
    batch.out = memory_.open<uint16_t>(parts_.update, stream_);
  }
  DeviceStages stages(observer_, index, Module::kExperts);
  moe::DeviceLayerOptions options;
  options.observer = stages.get();
  options.joins_steps = joins_steps_;
  return moe::run_device_layer(table_, *layer.moe, batch, memory_.at<void>(parts_.moe), parts_.moe.bytes, streams_,
                               status(), options);
}

// The activated rows [num_rows, width].
Result<const uint16_t*> DeviceDecoder::enqueue_hidden(Module module, const DeviceMlpView& mlp, const Input& input) {
  auto* hidden = memory_.open<uint16_t>(parts_.mlp_hidden, stream_);
  QD_TRY_STATUS(enqueue_linear(mlp.gate_up, input, {kernels::GemmOutput::kActivated, hidden, mlp.width}));
  QD_TRY_STATUS(show_rows(module, "act", hidden, input.num_rows, mlp.width));
  return hidden;
}

Status DeviceDecoder::enqueue_dense(Module module, const DeviceMlpView& mlp, const Input& input, uint16_t* rows) {
  QD_TRY(const uint16_t* const hidden, enqueue_hidden(module, mlp, input));
  if (shard_.is_split()) {
    return enqueue_row_parallel(module, mlp.down, {hidden, input.num_rows, mlp.width, mlp.down_offset}, rows);
  }
  Input second{input.num_rows, hidden, nullptr, nullptr};
  if (mlp.is_w4()) {
    auto* act = memory_.open<uint8_t>(parts_.mlp_act, stream_);
    auto* act_scale = memory_.open<float>(parts_.mlp_scale, stream_);
    QD_TRY_STATUS(enqueue_quantise(module, hidden, input.num_rows, mlp.width, act, act_scale));
    second.act = act;
    second.act_scale = act_scale;
  }
  QD_TRY_STATUS(enqueue_linear(mlp.down, second, {kernels::GemmOutput::kRowsBf16, rows, config_.hidden_size}));
  return show_rows(module, "gemm2_out", rows, input.num_rows, config_.hidden_size);
}

// Logits, choice and plan of bf16 experts.
Status DeviceDecoder::enqueue_bf16_routes(const DeviceLayerView& layer, const kernels::DeviceRouteTokens& route,
                                          const kernels::PlanRoutes& plan) {
  const bool fits =
      kernels::fits_route_and_plan(route.num_tokens, route.num_experts, route.top_k, config_.hidden_size) &&
      reinterpret_cast<uintptr_t>(layer.router) % 16 == 0;
  if (fits && observer_ == nullptr) {
    kernels::RouteAndPlan problem;
    problem.logits = open_router(layer, route.num_tokens);
    problem.route = route;
    problem.plan = plan;
    problem.arrivals = memory_.at<uint32_t>(parts_.router_arrivals);
    device::before_step("route_and_plan", stream_);
    table_.route_and_plan(problem, stream_);
    return {};
  }
  QD_TRY_STATUS(enqueue_router(layer, route.num_tokens));
  device::before_step("route_tokens", stream_);
  table_.route_tokens(route, stream_);
  device::before_step("plan_routes", stream_);
  table_.plan_routes(plan, stream_);
  return {};
}

// One product over the tiles of `gemm`.
void DeviceDecoder::enqueue_bf16_product(kernels::DeviceBf16Gemm gemm, const DeviceMatrix& matrix, const uint16_t* x,
                                         void* out, int64_t width) {
  gemm.n = matrix.shape.n;
  gemm.k = matrix.shape.k;
  gemm.weights = matrix.bf16;
  gemm.expert_stride = gemm.n * gemm.k;
  gemm.bias = gemm.output == kernels::GemmOutput::kActivated || ranks_.adds_bias() ? matrix.bias : nullptr;
  gemm.x = x;
  gemm.x_pitch = gemm.k;
  gemm.out = out;
  gemm.out_pitch = width;
  device::before_step("bf16_gemm", stream_);
  table_.bf16_gemm(gemm, stream_);
}

Status DeviceDecoder::enqueue_bf16_moe(const DeviceLayerView& layer, int64_t num_tokens, const FeedForwardForm& form) {
  const moe::RouterRule& rule = config_.router;
  const Bf16MoeParts parts = plan_bf16_moe(config_, num_tokens, shard_.is_split());
  const moe::Workspace memory(memory_.at<void>(parts_.moe));
  const int64_t routes = num_tokens * rule.top_k;

  kernels::DeviceRouteTokens route = moe::route_problem(rule, num_tokens);
  route.logits = memory_.at<float>(parts_.router_logits);
  route.ids = memory.open<int32_t>(parts.ids, stream_);
  route.weights = memory.open<float>(parts.weights, stream_);
  kernels::PlanRoutes plan;
  plan.num_tokens = num_tokens;
  plan.top_k = rule.top_k;
  plan.num_experts = rule.num_experts;
  plan.tile_tokens = table_.choose_bf16_tile(rule.num_experts, routes);
  plan.ids = route.ids;
  plan.offsets = memory.open<int32_t>(parts.offsets, stream_);
  plan.route_of_slot = memory.open<int32_t>(parts.route_of_slot, stream_);
  plan.slot_of_route = memory.open<int32_t>(parts.slot_of_route, stream_);
  plan.tiles = memory.open<kernels::TokenTile>(parts.tiles, stream_);
  plan.num_tiles = memory.open<int32_t>(parts.num_tiles, stream_);
  plan.max_tiles = kernels::max_route_tiles(routes, rule.num_experts, plan.tile_tokens);
  plan.scratch = memory.open<int32_t>(parts.scratch, stream_);
  plan.status = status();
  QD_TRY_STATUS(enqueue_bf16_routes(layer, route, plan));

  const DeviceMlpView& mlp = *layer.experts;
  kernels::DeviceBf16Gemm gemm;
  gemm.num_experts = rule.num_experts;
  gemm.list.tiles = plan.tiles;
  gemm.list.num_tiles = plan.num_tiles;
  gemm.list.max_tiles = plan.max_tiles;
  gemm.tile_tokens = plan.tile_tokens;
  gemm.numerics = numerics_;
  gemm.output = shard_.is_split() ? kernels::GemmOutput::kRowsF32 : kernels::GemmOutput::kRowsBf16;
  kernels::DeviceBf16Gemm first = gemm;
  first.source_row = plan.route_of_slot;
  first.source_divisor = rule.top_k;
  first.output = kernels::GemmOutput::kActivated;
  auto* hidden = memory.open<uint16_t>(parts.hidden, stream_);
  enqueue_bf16_product(first, mlp.gate_up, input_rows(), hidden, mlp.width);
  void* const rows = memory.open<uint8_t>(parts.rows, stream_);
  enqueue_bf16_product(gemm, mlp.down, hidden, rows, config_.hidden_size);
  QD_TRY_STATUS(show_bf16_experts(plan, hidden, rows));
  QD_TRY_STATUS(combine_bf16(layer,
                             {num_tokens, rows, plan.slot_of_route, route.weights, memory.at<float>(parts.shared)},
                             form.leaves_combine));
  return show_rows(Module::kExperts, "out", output_rows(), num_tokens, config_.hidden_size);
}

// The sigmoid gate of a shared expert, or null.
const float* DeviceDecoder::enqueue_shared_gate(const DeviceLayerView& layer, int64_t num_tokens) {
  if (layer.shared_gate == nullptr) return nullptr;
  auto* gate = memory_.open<float>(parts_.shared_gate, stream_);
  device::before_step("shared_gate", stream_);
  table_.router_logits({num_tokens, 1, config_.hidden_size, true, input_rows(), layer.shared_gate, gate}, stream_);
  return gate;
}

Status DeviceDecoder::combine_bf16(const DeviceLayerView& layer, const Bf16Rows& from, bool leaves_combine) {
  if (shard_.is_split()) return combine_bf16_partial(layer, from);
  kernels::DeviceCombine combine;
  combine.num_tokens = from.num_tokens;
  combine.top_k = config_.router.top_k;
  combine.width = config_.hidden_size;
  combine.rows = static_cast<const uint16_t*>(from.rows);
  combine.slot = from.slot;
  combine.weight = from.weight;
  if (layer.shared) {
    auto* shared = memory_.open<uint16_t>(parts_.mlp_rows, stream_);
    QD_TRY_STATUS(enqueue_dense(Module::kShared, *layer.shared, normed_input(from.num_tokens), shared));
    combine.shared = shared;
    combine.shared_gate = enqueue_shared_gate(layer, from.num_tokens);
  }
  if (leaves_combine) {
    pending_combine_ = combine;
    return {};
  }
  combine.out = memory_.open<uint16_t>(parts_.update, stream_);
  device::before_step("combine", stream_);
  table_.combine(combine, stream_);
  return {};
}

// Partial rows of every expert, the shared one included, go through the chain unrounded; then the ranks' sums are added
// (docs/numerics.md section 6).
Status DeviceDecoder::combine_bf16_partial(const DeviceLayerView& layer, const Bf16Rows& from) {
  kernels::DeviceCombinePartial combine;
  combine.num_tokens = from.num_tokens;
  combine.top_k = config_.router.top_k;
  combine.width = config_.hidden_size;
  combine.rows = static_cast<const float*>(from.rows);
  combine.slot = from.slot;
  combine.weight = from.weight;
  if (layer.shared) {
    QD_TRY(const uint16_t* const hidden, enqueue_hidden(Module::kShared, *layer.shared, normed_input(from.num_tokens)));
    DeviceMatrix down = layer.shared->down;
    if (!ranks_.adds_bias()) down.bias = nullptr;
    QD_TRY_STATUS(enqueue_linear(down, {from.num_tokens, hidden, nullptr, nullptr},
                                 {kernels::GemmOutput::kRowsF32, from.shared, config_.hidden_size}));
    QD_TRY_STATUS(show_partial_rows(Module::kShared, from.shared, from.num_tokens));
    combine.shared = from.shared;
    combine.shared_gate = enqueue_shared_gate(layer, from.num_tokens);
  }
  combine.out = memory_.open<float>(parts_.partial, stream_);
  device::before_step("combine", stream_);
  table_.combine_partial(combine, stream_);
  auto* const update = memory_.open<uint16_t>(parts_.update, stream_);
  return moe::enqueue_sum(table_, ranks_, combine.out, from.num_tokens * combine.width, update, stream_);
}

}  // namespace quadrille::model
