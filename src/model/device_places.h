// SPDX-License-Identifier: Apache-2.0
// Where every weight of a model lies in the one piece of device memory that holds them, decided from shapes alone:
// before a byte is copied the sum is known (device_memory_plan.h), and the loader and the decoder read the same places.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/result.h"
#include "kernels/api/problems.h"
#include "model/config.h"
#include "model/inventory.h"
#include "moe/device_layer.h"

namespace quadrille::model {

// `num_experts` matrices of one shape and kind, as a checkpoint holds them.
struct StackShape {
  int64_t num_experts = 1;
  int64_t n = 0, k = 0;
  bool is_w4 = false;
  int64_t group_size = 0;
  bool has_bias = false;
  kernels::W4Source source = kernels::W4Source::kUint4b8;  // of the checkpoint's codes

  // Whether rows of the two may lie in one matrix.
  bool stacks_with(const StackShape& other) const {
    return is_w4 == other.is_w4 && group_size == other.group_size && has_bias == other.has_bias && k == other.k &&
           source == other.source;
  }
};
struct MlpShape {
  int64_t width = 0;
  int64_t down_offset = 0;  // zeros before the width in a row of down's input (moe::DeviceMlp); of a shard
  StackShape gate_up, down;
};
struct DeviceLayerShape {
  StackShape q, k, v, o;
  std::optional<MlpShape> experts, shared, dense;
};
struct DeviceModelShape {
  int64_t vocabulary = 0;  // rows of embedding and lm_head
  std::vector<DeviceLayerShape> layers;
  std::optional<StackShape> lm_head;  // nothing where tied to the embedding
};
// Errors: kUnsupported where a feed-forward has gate and down of two kinds.
Result<DeviceModelShape> device_shape(const Inventory& inventory, const ModelConfig& config);

// Bytes [offset, offset + bytes) of the weights' memory; offsets are multiples of 256. No bytes: the model has none.
struct Place {
  size_t offset = 0, bytes = 0;
};
struct StackPlace {
  StackShape shape;
  Place weights;              // w4: layout/w4_hopper64.h; bf16: [num_experts, n, k]
  Place channel_scale;        // w4 of `vllm`: [num_experts, padded_n] fp32
  Place bias;                 // [num_experts, padded_n] fp32 (bf16: [n])
  int64_t expert_stride = 0;  // bytes
};
struct MlpPlace {
  int64_t width = 0;
  int64_t down_offset = 0;
  StackPlace gate_up, down;
};
struct LayerPlace {
  Place input_norm, post_attention_norm, q_norm, k_norm;
  std::vector<StackPlace> qkv;  // one matrix of q, k and v rows where their kinds agree, else three
  StackPlace o;
  Place router, shared_gate;
  std::optional<MlpPlace> experts, shared, dense;
};
struct WeightPlaces {
  Place embedding;  // [vocabulary in whole eights, hidden] bf16, zero behind the vocabulary; a tied lm_head lies here,
                    // too
  std::vector<LayerPlace> layers;
  Place final_norm;
  StackPlace lm_head;  // bf16: n is the vocabulary in whole eights, zero rows behind it
  size_t total = 0;
  size_t expert_bytes = 0;     // of these, the routed experts
  size_t largest_slot = 0;     // bytes of the largest expert in the checkpoint's form, with scales and bias
  size_t largest_staging = 0;  // device memory that the preparation of the largest stack takes: two experts
};
WeightPlaces place_weights(const DeviceModelShape& shape, const ModelConfig& config, kernels::Numerics numerics);

// What one token reads in a decode step: everything but the embedding and the experts that it is not sent to.
size_t bytes_read_per_token(const WeightPlaces& places, const ModelConfig& config);

// `offset` behind `base`, which is null while shapes are looked at before there is memory: nothing is read then, and a
// sum with a null pointer has no meaning in C++.
inline uint8_t* place_at(uint8_t* base, size_t offset) {
  return reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(base) + offset);
}

// A stack in memory at `base`.
struct DeviceMatrix {
  StackShape shape;
  moe::DeviceLinear w4;            // where the shape says so
  const uint16_t* bf16 = nullptr;  // else: [num_experts, n, k]
  const float* bias = nullptr;     // [n] or null
};
DeviceMatrix matrix_at(const StackPlace& place, uint8_t* base, kernels::Numerics numerics);

}  // namespace quadrille::model
