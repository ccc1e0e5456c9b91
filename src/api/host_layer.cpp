// SPDX-License-Identifier: Apache-2.0
// The MoE layer on a CPU as C functions over moe/layer.h.
#include <memory>

#include "api/call.h"
#include "api/host.h"
#include "api/layer_desc.h"
#include "moe/layer.h"

struct qd_host_layer {
  std::shared_ptr<quadrille::api::HostPlace> place;
  std::vector<std::shared_ptr<const quadrille::api::HostWeights>> weights;
  quadrille::kernels::Numerics numerics = quadrille::kernels::Numerics::kExact;
  int32_t rounding = QD_ROUND_BF16;
  quadrille::moe::MoeLayer layer;
  std::vector<float> correction_bias;        // [num_experts] or empty
  std::vector<uint16_t> shared_gate_weight;  // [hidden] bf16 or empty
};

namespace quadrille::api {
namespace {

Status check_parts(const HostWeights& weights, int64_t parts, const char* name) {
  if (weights.num_parts == parts) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: expected weights of {} part{}, found {}", name, parts,
                    parts == 1 ? "" : "s (gate and up)", weights.num_parts);
}

Result<moe::GatedMlp> read_mlp(const qd_host_mlp& given, qd_host_layer* layer) {
  QD_TRY_STATUS(check_given(given.gate_up, "gate_up"));
  QD_TRY_STATUS(check_given(given.down, "down"));
  QD_TRY_STATUS(check_activation(given.activation));
  const HostWeights& gate_up = *given.gate_up->weights;
  const HostWeights& down = *given.down->weights;
  moe::GatedMlp mlp;
  mlp.activation = activation_of(given);
  QD_TRY_STATUS(check_parts(gate_up, mlp.activation.gated() ? 2 : 1, "gate_up"));
  QD_TRY_STATUS(check_parts(down, 1, "down"));
  for (const auto* weights : {given.gate_up, given.down}) {
    if (layer->weights.empty()) layer->numerics = weights->weights->numerics;
    if (weights->weights->numerics != layer->numerics) {
      return make_error(ErrorCode::kInvalidArgument, "expected all weights of a layer in one numerics, found both");
    }
    layer->weights.push_back(weights->weights);
  }
  mlp.gate_up = gate_up.linear;
  mlp.down = down.linear;
  mlp.hidden = gate_up.linear.k;
  mlp.width = down.linear.k;
  return mlp;
}

Result<moe::GatedMlp> read_named_mlp(const qd_host_mlp& given, const char* name, qd_host_layer* layer) {
  auto mlp = read_mlp(given, layer);
  if (!mlp) return mlp.error().in(name);
  return mlp;
}

Result<std::unique_ptr<qd_host_layer>> make_layer(const qd_host& host, const qd_host_layer_desc* desc) {
  QD_TRY_STATUS(check_struct(desc, "qd_host_layer_desc"));
  QD_TRY_STATUS(check_rounding(desc->rounding));
  auto made = std::make_unique<qd_host_layer>();
  made->place = host.place;
  made->rounding = desc->rounding;
  moe::MoeLayer& layer = made->layer;
  QD_TRY(layer.rule, read_rule(*desc));
  QD_TRY(layer.experts, read_named_mlp(desc->experts, "experts", made.get()));
  if (desc->shared.gate_up != nullptr || desc->shared.down != nullptr) {
    QD_TRY(layer.shared, read_named_mlp(desc->shared, "shared", made.get()));
  }
  QD_TRY_STATUS(moe::check_layer(layer));
  if (desc->correction_bias != nullptr) {
    made->correction_bias.assign(desc->correction_bias, desc->correction_bias + layer.rule.num_experts);
    layer.correction_bias = made->correction_bias.data();
  }
  if (desc->shared_gate_weight != nullptr) {
    const auto* gate = static_cast<const uint16_t*>(desc->shared_gate_weight);
    made->shared_gate_weight.assign(gate, gate + layer.experts.hidden);
    layer.shared_gate_weight = made->shared_gate_weight.data();
  }
  return made;
}

Status check_batch(const qd_host_batch* batch) {
  QD_TRY_STATUS(check_struct(batch, "qd_host_batch"));
  QD_TRY_STATUS(check_activation_type(batch->type));
  if (batch->num_tokens < 0) {
    return make_error(ErrorCode::kInvalidArgument, "num_tokens: expected at least 0, found {}", batch->num_tokens);
  }
  if (batch->num_tokens == 0) return {};
  QD_TRY_STATUS(check_given(batch->x, "x"));
  QD_TRY_STATUS(check_given(batch->out, "out"));
  if (batch->router_logits != nullptr) return {};
  QD_TRY_STATUS(check_given(batch->topk_ids, "topk_ids (or router_logits)"));
  return check_given(batch->topk_weights, "topk_weights");
}

Status run(const qd_host_layer& layer, const qd_host_batch* given) {
  QD_TRY_STATUS(check_batch(given));
  const qd_host_batch& batch = *given;
  if (batch.num_tokens == 0) return {};
  QD_TRY_STATUS(layer.place->check_process());
  const BorrowedScratch scratch(*layer.place);
  const moe::Execution execution = execution_of(*layer.place, scratch, layer.numerics, layer.rounding);
  const int64_t hidden = layer.layer.experts.hidden;
  const float* x = widen_rows(execution, batch.type, batch.x, batch.num_tokens, hidden);
  moe::Routes routes{batch.topk_ids, batch.topk_weights};
  if (batch.router_logits != nullptr) {
    const int64_t count = batch.num_tokens * layer.layer.rule.top_k;
    auto* ids = scratch.get()->take<int32_t>(count);
    auto* weights = scratch.get()->take<float>(count);
    moe::route_tokens(layer.layer.rule, layer.layer.correction_bias, batch.router_logits, batch.num_tokens, ids,
                      weights, execution.kernels.pool);
    routes = {ids, weights};
  }
  float* out = scratch.get()->take<float>(batch.num_tokens * hidden);
  QD_TRY_STATUS(moe::run_layer(layer.layer, x, batch.num_tokens, routes, execution, out));
  narrow_rows(execution, batch.type, out, batch.num_tokens, hidden, batch.out);
  return {};
}

}  // namespace
}  // namespace quadrille::api

using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::guarded;

extern "C" {

qd_result qd_host_layer_create(const qd_host* host, const qd_host_layer_desc* desc, qd_host_layer** layer,
                               qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer (where the handle goes)"));
    *layer = nullptr;
    QD_TRY_STATUS(check_given(host, "host"));
    QD_TRY(auto made, quadrille::api::make_layer(*host, desc));
    *layer = made.release();
    return {};
  });
}

void qd_host_layer_destroy(qd_host_layer* layer) {
  delete layer;
}

qd_result qd_host_layer_run(const qd_host_layer* layer, const qd_host_batch* batch, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    return quadrille::api::run(*layer, batch);
  });
}

}  // extern "C"
