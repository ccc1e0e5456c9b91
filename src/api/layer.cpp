// SPDX-License-Identifier: Apache-2.0
// The MoE layer and the linear layer as C functions over moe/device_layer.h.
#include <memory>

#include "api/call.h"
#include "api/layer_desc.h"
#include "api/weights.h"
#include "kernels/api/device_table.h"

struct qd_layer {
  quadrille::moe::DeviceMoeLayer layer;
  const qd_weights* weights[4] = {};  // those there are
  int num_weights = 0;
};

namespace quadrille::api {
namespace {

using device::Stream;
using kernels::DeviceTable;

Status check_parts(const qd_weights& weights, int64_t parts, const char* name) {
  if (weights.num_parts == parts) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: expected weights of {} part{}, found {}", name, parts,
                    parts == 1 ? "" : "s (gate and up)", weights.num_parts);
}

Result<moe::DeviceMlp> read_mlp(const qd_mlp& given, const char* name) {
  const auto within = [name](Status status) { return status ? status : Status(status.error().in(name)); };
  QD_TRY_STATUS(within(check_given(given.gate_up, "gate_up")));
  QD_TRY_STATUS(within(check_given(given.down, "down")));
  QD_TRY_STATUS(within(check_activation(given.activation)));
  moe::DeviceMlp mlp;
  mlp.activation = activation_of(given);
  QD_TRY_STATUS(within(check_parts(*given.gate_up, mlp.activation.gated() ? 2 : 1, "gate_up")));
  QD_TRY_STATUS(within(check_parts(*given.down, 1, "down")));
  mlp.gate_up = given.gate_up->linear;
  mlp.down = given.down->linear;
  mlp.hidden = mlp.gate_up.k;
  mlp.width = mlp.down.k;
  return mlp;
}

Result<std::unique_ptr<qd_layer>> make_layer(const qd_layer_desc* desc) {
  QD_TRY_STATUS(check_struct(desc, "qd_layer_desc"));
  auto made = std::make_unique<qd_layer>();
  moe::DeviceMoeLayer& layer = made->layer;
  QD_TRY(layer.rule, read_rule(*desc));
  layer.correction_bias = desc->correction_bias;
  layer.expert_map = desc->expert_map;
  layer.shared_gate_weight = static_cast<const uint16_t*>(desc->shared_gate_weight);
  QD_TRY(layer.experts, read_mlp(desc->experts, "experts"));
  const bool shared = desc->shared.gate_up != nullptr || desc->shared.down != nullptr;
  if (shared) {
    QD_TRY(layer.shared, read_mlp(desc->shared, "shared"));
  }
  for (const qd_weights* weights :
       {desc->experts.gate_up, desc->experts.down, desc->shared.gate_up, desc->shared.down}) {
    if (weights != nullptr) made->weights[made->num_weights++] = weights;
  }
  QD_TRY_STATUS(moe::can_run(layer, 0));
  return made;
}

Result<moe::DeviceStreams> read_streams(const qd_streams* given) {
  QD_TRY_STATUS(check_struct(given, "qd_streams"));
  return moe::DeviceStreams{{given->main}, {given->side}, {given->shared_begins}, {given->shared_ends}};
}

// What every run asks for before its own checks.
Result<const DeviceTable*> ready(const qd_layer& layer, Stream stream) {
  QD_TRY(const DeviceTable* table, kernels::device_table());
  QD_TRY_STATUS(device::check_stream(stream));
  for (int i = 0; i < layer.num_weights; ++i) QD_TRY_STATUS(order_behind(*layer.weights[i], stream));
  return table;
}

Status run(const qd_layer& layer, const qd_batch* given, void* workspace, size_t bytes, const qd_streams* on,
           uint32_t* flags) {
  QD_TRY_STATUS(check_struct(given, "qd_batch"));
  QD_TRY(const moe::DeviceStreams streams, read_streams(on));
  const moe::DeviceBatch batch{given->num_tokens,    static_cast<const uint16_t*>(given->x),
                               given->router_logits, given->topk_ids,
                               given->topk_weights,  static_cast<uint16_t*>(given->out)};
  QD_TRY_STATUS(moe::can_run(layer.layer, batch.num_tokens));
  QD_TRY(const DeviceTable* table, ready(layer, streams.main));
  return moe::run_device_layer(*table, layer.layer, batch, workspace, bytes, streams, flags);
}

Status run_masked(const qd_layer& layer, const qd_masked_batch* given, void* workspace, size_t bytes,
                  const qd_streams* on, uint32_t* flags) {
  QD_TRY_STATUS(check_struct(given, "qd_masked_batch"));
  QD_TRY(const moe::DeviceStreams streams, read_streams(on));
  const moe::DeviceMaskedBatch batch{given->max_m, static_cast<const uint8_t*>(given->act), given->act_scale,
                                     given->masked_m, static_cast<uint16_t*>(given->out)};
  QD_TRY_STATUS(moe::can_run_masked(layer.layer, batch.max_m));
  QD_TRY(const DeviceTable* table, ready(layer, streams.main));
  return moe::run_masked_layer(*table, layer.layer, batch, workspace, bytes, streams, flags);
}

Status run_linear(const qd_weights& weights, const void* x, int64_t num_rows, void* out, void* workspace, size_t bytes,
                  Stream stream) {
  QD_TRY_STATUS(check_parts(weights, 1, "linear"));
  QD_TRY_STATUS(moe::can_run_linear(weights.linear, num_rows));
  QD_TRY(const DeviceTable* table, kernels::device_table());
  QD_TRY_STATUS(device::check_stream(stream));
  QD_TRY_STATUS(order_behind(weights, stream));
  return moe::run_device_linear(*table, weights.linear, static_cast<const uint16_t*>(x), num_rows,
                                static_cast<uint16_t*>(out), workspace, bytes, stream);
}

}  // namespace
}  // namespace quadrille::api

using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::guarded;
namespace moe = quadrille::moe;

extern "C" {

qd_result qd_layer_create(const qd_layer_desc* desc, qd_layer** layer, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer (where the handle goes)"));
    *layer = nullptr;
    QD_TRY(auto made, quadrille::api::make_layer(desc));
    *layer = made.release();
    return {};
  });
}

void qd_layer_destroy(qd_layer* layer) {
  delete layer;
}

qd_result qd_layer_can_run(const qd_layer* layer, int64_t max_tokens, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    return moe::can_run(layer->layer, max_tokens);
  });
}

qd_result qd_layer_workspace_bytes(const qd_layer* layer, int64_t max_tokens, size_t* bytes, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    QD_TRY_STATUS(check_given(bytes, "bytes"));
    *bytes = 0;
    QD_TRY_STATUS(moe::can_run(layer->layer, max_tokens));
    *bytes = moe::workspace_bytes(layer->layer, max_tokens);
    return {};
  });
}

qd_result qd_layer_run(const qd_layer* layer, const qd_batch* batch, void* workspace, size_t workspace_bytes,
                       const qd_streams* streams, uint32_t* flags, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    return quadrille::api::run(*layer, batch, workspace, workspace_bytes, streams, flags);
  });
}

qd_result qd_layer_can_run_masked(const qd_layer* layer, int64_t max_m, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    return moe::can_run_masked(layer->layer, max_m);
  });
}

qd_result qd_layer_masked_workspace_bytes(const qd_layer* layer, int64_t max_m, size_t* bytes, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    QD_TRY_STATUS(check_given(bytes, "bytes"));
    *bytes = 0;
    QD_TRY_STATUS(moe::can_run_masked(layer->layer, max_m));
    *bytes = moe::masked_workspace_bytes(layer->layer, max_m);
    return {};
  });
}

qd_result qd_layer_run_masked(const qd_layer* layer, const qd_masked_batch* batch, void* workspace,
                              size_t workspace_bytes, const qd_streams* streams, uint32_t* flags, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(layer, "layer"));
    return quadrille::api::run_masked(*layer, batch, workspace, workspace_bytes, streams, flags);
  });
}

qd_result qd_linear_workspace_bytes(const qd_weights* weights, int64_t max_rows, size_t* bytes, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(weights, "weights"));
    QD_TRY_STATUS(check_given(bytes, "bytes"));
    *bytes = 0;
    QD_TRY_STATUS(moe::can_run_linear(weights->linear, max_rows));
    *bytes = moe::linear_workspace_bytes(weights->linear, max_rows);
    return {};
  });
}

qd_result qd_linear_run(const qd_weights* weights, const void* x, int64_t num_rows, void* out, void* workspace,
                        size_t workspace_bytes, void* stream, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(weights, "weights"));
    return quadrille::api::run_linear(*weights, x, num_rows, out, workspace, workspace_bytes, {stream});
  });
}

}  // extern "C"
