// SPDX-License-Identifier: Apache-2.0
// The weights of a model on a GPU as the decoder sees them: views into the one piece of memory that device_places.h
// lays out. Made once by device_model.cpp; with a base of null they still have every shape, for plans and checks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/result.h"
#include "model/device_places.h"
#include "moe/device_layer.h"

namespace quadrille::model {

struct DeviceMlpView {
  int64_t width = 0;
  int64_t down_offset = 0;
  DeviceMatrix gate_up, down;  // both of one kind
  bool is_w4() const { return gate_up.shape.is_w4; }
};

struct DeviceLayerView {
  const uint16_t* input_norm = nullptr;           // [hidden] bf16
  const uint16_t* post_attention_norm = nullptr;  // [hidden]
  const uint16_t* q_norm = nullptr;               // by ModelConfig::qk_norm, or null
  const uint16_t* k_norm = nullptr;
  std::vector<DeviceMatrix> qkv;  // one, or q, k and v
  DeviceMatrix o;
  const uint16_t* router = nullptr;       // [num_experts, hidden]; null: a dense layer
  const uint16_t* shared_gate = nullptr;  // [hidden] or null
  std::optional<DeviceMlpView> experts, shared, dense;
  std::optional<moe::DeviceMoeLayer> moe;  // of a MoE layer whose experts are W4A8

  bool is_moe() const { return experts.has_value(); }
};

struct DeviceWeightsView {
  const uint16_t* embedding = nullptr;  // [vocab, hidden] bf16
  std::vector<DeviceLayerView> layers;
  const uint16_t* final_norm = nullptr;
  DeviceMatrix lm_head;
};
// `ranks`: those that hold the other parts of row-parallel matrices.
DeviceWeightsView view_weights(const WeightPlaces& places, const ModelConfig& config, uint8_t* base,
                               kernels::Numerics numerics, const moe::DeviceRanks& ranks = {});

// Whether the kernels of a GPU run these shapes. Errors: kUnsupported, naming rule, found and legal values, and where
// the layer is.
Status check_device_model(const DeviceWeightsView& weights, const ModelConfig& config, int64_t max_tokens);

}  // namespace quadrille::model
