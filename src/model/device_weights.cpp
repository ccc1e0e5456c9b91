// SPDX-License-Identifier: Apache-2.0
// Views and the rules of the kernels behind device_weights.h.
#include "model/device_weights.h"

#include "layout/kv_tile.h"

namespace quadrille::model {
namespace {

const uint16_t* bf16_at(const Place& place, uint8_t* base) {
  return place.bytes == 0 ? nullptr : reinterpret_cast<const uint16_t*>(place_at(base, place.offset));
}

std::optional<DeviceMlpView> mlp_at(const std::optional<MlpPlace>& place, uint8_t* base, kernels::Numerics numerics) {
  if (!place) return {};
  return DeviceMlpView{place->width, place->down_offset, matrix_at(place->gate_up, base, numerics),
                       matrix_at(place->down, base, numerics)};
}

moe::DeviceMlp w4_mlp(const DeviceMlpView& view, int64_t hidden) {
  moe::DeviceMlp mlp;
  mlp.hidden = hidden;
  mlp.width = view.width;
  mlp.gate_up = view.gate_up.w4;
  mlp.down = view.down.w4;
  mlp.down_offset = view.down_offset;
  return mlp;
}

std::optional<moe::DeviceMoeLayer> w4_layer(const DeviceLayerView& view, const ModelConfig& config,
                                            const moe::DeviceRanks& ranks) {
  if (!view.experts || !view.experts->is_w4() || (view.shared && !view.shared->is_w4())) return {};
  moe::DeviceMoeLayer layer;
  layer.rule = config.router;
  layer.experts = w4_mlp(*view.experts, config.hidden_size);
  if (view.shared) layer.shared = w4_mlp(*view.shared, config.hidden_size);
  layer.shared_gate_weight = view.shared_gate;
  layer.ranks = ranks;
  return layer;
}

Status check_multiple(const char* what, int64_t value) {
  if (value > 0 && value % 8 == 0) return {};
  return make_error(ErrorCode::kUnsupported, "{}: expected a multiple of 8, found {}: the GPU reads 16 bytes at once",
                    what, value);
}

Status check_matrix(const DeviceMatrix& matrix, const char* name, int64_t max_rows) {
  if (matrix.shape.is_w4) {
    moe::DeviceLinear one = matrix.w4;
    one.num_experts = 1;
    if (auto legal = moe::can_run_linear(one, max_rows); !legal) return legal.error().in(name);
    return {};
  }
  if (auto legal = check_multiple("out features", matrix.shape.n); !legal) return legal.error().in(name);
  if (auto legal = check_multiple("in features", matrix.shape.k); !legal) return legal.error().in(name);
  return {};
}

Status check_mlp(const DeviceMlpView& mlp, const char* name, int64_t max_rows) {
  if (auto legal = check_matrix(mlp.gate_up, "gate_up", max_rows); !legal) return legal.error().in(name);
  if (auto legal = check_matrix(mlp.down, "down", max_rows); !legal) return legal.error().in(name);
  return {};
}

Status check_layer(const DeviceLayerView& layer, const ModelConfig& config, int64_t max_tokens) {
  for (const DeviceMatrix& matrix : layer.qkv) QD_TRY_STATUS(check_matrix(matrix, "q, k and v", max_tokens));
  QD_TRY_STATUS(check_matrix(layer.o, "o_proj", max_tokens));
  if (layer.dense) return check_mlp(*layer.dense, "feed-forward", max_tokens);
  if (layer.moe) return moe::can_run(*layer.moe, max_tokens);
  if (config.router.weight_on_input) {
    return make_error(ErrorCode::kUnsupported,
                      "bf16 experts with the router weight on their input: found, not run on "
                      "a GPU; use --device cpu");
  }
  if (layer.shared && layer.shared->is_w4() != layer.experts->is_w4()) {
    return make_error(ErrorCode::kUnsupported,
                      "expected experts and shared expert of one kind, found one quantised and one in bf16: run it "
                      "with --device cpu");
  }
  QD_TRY_STATUS(check_mlp(*layer.experts, "experts", max_tokens));
  if (layer.shared) QD_TRY_STATUS(check_mlp(*layer.shared, "shared expert", max_tokens));
  return {};
}

}  // namespace

DeviceWeightsView view_weights(const WeightPlaces& places, const ModelConfig& config, uint8_t* base,
                               kernels::Numerics numerics, const moe::DeviceRanks& ranks) {
  DeviceWeightsView view;
  view.embedding = bf16_at(places.embedding, base);
  view.final_norm = bf16_at(places.final_norm, base);
  view.lm_head = matrix_at(places.lm_head, base, numerics);
  for (const LayerPlace& place : places.layers) {
    DeviceLayerView layer;
    layer.input_norm = bf16_at(place.input_norm, base);
    layer.post_attention_norm = bf16_at(place.post_attention_norm, base);
    layer.q_norm = bf16_at(place.q_norm, base);
    layer.k_norm = bf16_at(place.k_norm, base);
    for (const StackPlace& stack : place.qkv) layer.qkv.push_back(matrix_at(stack, base, numerics));
    layer.o = matrix_at(place.o, base, numerics);
    layer.router = bf16_at(place.router, base);
    layer.shared_gate = bf16_at(place.shared_gate, base);
    layer.experts = mlp_at(place.experts, base, numerics);
    layer.shared = mlp_at(place.shared, base, numerics);
    layer.dense = mlp_at(place.dense, base, numerics);
    layer.moe = w4_layer(layer, config, ranks);
    view.layers.push_back(std::move(layer));
  }
  return view;
}

Status check_device_model(const DeviceWeightsView& weights, const ModelConfig& config, int64_t max_tokens) {
  QD_TRY_STATUS(check_multiple("hidden size", config.hidden_size));
  QD_TRY_STATUS(check_multiple("head size", config.head_dim));
  if (layout::padded_head_dim(config.head_dim) == 0) {
    return make_error(ErrorCode::kUnsupported, "head size: expected at most {}, found {}: run it with --device cpu",
                      layout::kMostTileDim, config.head_dim);
  }
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    if (auto legal = check_layer(weights.layers[l], config, max_tokens); !legal) {
      return legal.error().in(fmt::format("layer {}", l));
    }
  }
  if (auto legal = check_matrix(weights.lm_head, "lm_head", max_tokens); !legal) return legal;
  return {};
}

}  // namespace quadrille::model
