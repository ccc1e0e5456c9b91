// SPDX-License-Identifier: Apache-2.0
// Shapes out of an inventory, and a cursor over them in the order of the model.
#include "model/device_places.h"

#include <algorithm>

#include "layout/w4_hopper64.h"
#include "layout/w4_lanes16.h"

namespace quadrille::model {
namespace {

constexpr size_t kAlign = 256;

constexpr size_t aligned(size_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

StackShape stack_shape(const ModuleSource& source, int64_t num_experts = 1) {
  StackShape shape;
  shape.num_experts = num_experts;
  shape.n = source.n();
  shape.k = source.k();
  shape.is_w4 = source.quantised();
  shape.group_size = source.quantised() ? source.decision.group_size : 0;
  shape.has_bias = source.bias != nullptr;
  const bool packed = source.decision.format == formats::WeightFormat::kPackQuantized;
  if (source.quantised() && !packed) shape.source = kernels::W4Source::kInt8;
  return shape;
}

Result<MlpShape> mlp_shape(const MlpSources& source, int64_t num_experts) {
  MlpShape mlp;
  mlp.width = source.down.k();
  mlp.gate_up = stack_shape(source.gate, num_experts);
  mlp.gate_up.n += source.up.n();
  mlp.down = stack_shape(source.down, num_experts);
  if (mlp.gate_up.is_w4 == mlp.down.is_w4) return mlp;
  return make_error(ErrorCode::kUnsupported,
                    "'{}' and '{}': expected both quantised or neither, found one of each: the GPU runs a feed-forward "
                    "in one kind; run it with --device cpu",
                    source.gate.path, source.down.path);
}

class Cursor {
 public:
  explicit Cursor(kernels::Numerics numerics) : numerics_(numerics) {}

  Place take(size_t bytes) {
    const Place place{places.total, bytes};
    places.total += aligned(bytes);
    return place;
  }
  Place take_bf16(int64_t count) { return take(2 * static_cast<size_t>(count)); }

  StackPlace take_stack(const StackShape& shape) {
    StackPlace place;
    place.shape = shape;
    const auto experts = static_cast<size_t>(shape.num_experts);
    int64_t rows = shape.n;
    if (shape.is_w4) {
      const layout::W4Hopper64 map{shape.n, shape.k, shape.group_size, numerics_ == kernels::Numerics::kVllm};
      place.expert_stride = layout::ceil_div(map.num_bytes(), 128) * 128;
      rows = map.padded_n();
      place.weights = take(experts * static_cast<size_t>(place.expert_stride));
      if (map.vllm) place.channel_scale = take(experts * static_cast<size_t>(rows) * sizeof(float));
    } else {
      place.expert_stride = 2 * shape.n * shape.k;
      place.weights = take(experts * static_cast<size_t>(place.expert_stride));
    }
    if (shape.has_bias) place.bias = take(experts * static_cast<size_t>(rows) * sizeof(float));
    note_source(shape);
    return place;
  }

  MlpPlace take_mlp(const MlpShape& shape) {
    MlpPlace place;
    place.width = shape.width;
    place.down_offset = shape.down_offset;
    place.gate_up = take_stack(shape.gate_up);
    place.down = take_stack(shape.down);
    return place;
  }

  WeightPlaces places;

 private:
  // One expert as it comes: codes, scales, bias.
  void note_source(const StackShape& s) {
    if (!s.is_w4) return;
    const auto codes = static_cast<size_t>(s.source == kernels::W4Source::kInt8 ? s.n * s.k : s.n * s.k / 2);
    const auto scales = 2 * static_cast<size_t>(s.n * layout::num_groups(s.k, s.group_size));
    const size_t bias = s.has_bias ? 4 * static_cast<size_t>(s.n) : 0;
    // The maxima of the whole rows, of a row-parallel shard.
    const size_t absmax = numerics_ == kernels::Numerics::kVllm ? 4 * static_cast<size_t>(s.n) : 0;
    // Seven pieces at most (two parts of codes, scales and bias), each aligned.
    const size_t slot = codes + scales + bias + absmax + 7 * kAlign;
    places.largest_slot = std::max(places.largest_slot, slot);
    places.largest_staging = 2 * places.largest_slot;
  }

  kernels::Numerics numerics_;
};

LayerPlace place_layer(const DeviceLayerShape& shape, const ModelConfig& config, bool is_moe, Cursor* cursor) {
  LayerPlace layer;
  layer.input_norm = cursor->take_bf16(config.hidden_size);
  layer.post_attention_norm = cursor->take_bf16(config.hidden_size);
  if (config.qk_norm != QkNorm::kNone) {
    const bool per_head = config.qk_norm == QkNorm::kPerHead;
    layer.q_norm = cursor->take_bf16(per_head ? config.head_dim : config.q_width());
    layer.k_norm = cursor->take_bf16(per_head ? config.head_dim : config.kv_width());
  }
  if (shape.q.stacks_with(shape.k) && shape.q.stacks_with(shape.v)) {
    StackShape qkv = shape.q;
    qkv.n += shape.k.n + shape.v.n;
    layer.qkv.push_back(cursor->take_stack(qkv));
  } else {
    for (const StackShape* part : {&shape.q, &shape.k, &shape.v}) layer.qkv.push_back(cursor->take_stack(*part));
  }
  layer.o = cursor->take_stack(shape.o);
  if (is_moe) layer.router = cursor->take_bf16(config.router.num_experts * config.hidden_size);
  if (shape.experts) {
    const size_t begin = cursor->places.total;
    layer.experts = cursor->take_mlp(*shape.experts);
    cursor->places.expert_bytes += cursor->places.total - begin;
  }
  if (shape.shared) {
    if (config.shared_has_gate) layer.shared_gate = cursor->take_bf16(config.hidden_size);
    layer.shared = cursor->take_mlp(*shape.shared);
  }
  if (shape.dense) layer.dense = cursor->take_mlp(*shape.dense);
  return layer;
}

}  // namespace

Result<DeviceModelShape> device_shape(const Inventory& inventory, const ModelConfig& config) {
  DeviceModelShape shape;
  shape.vocabulary = config.vocab_size;
  for (const LayerSources& source : inventory.layers) {
    DeviceLayerShape layer;
    layer.q = stack_shape(source.q);
    layer.k = stack_shape(source.k);
    layer.v = stack_shape(source.v);
    layer.o = stack_shape(source.o);
    if (!source.experts.empty()) {
      QD_TRY(layer.experts, mlp_shape(source.experts[0], static_cast<int64_t>(source.experts.size())));
    }
    if (source.shared) {
      QD_TRY(layer.shared, mlp_shape(*source.shared, 1));
    }
    if (source.dense) {
      QD_TRY(layer.dense, mlp_shape(*source.dense, 1));
    }
    shape.layers.push_back(layer);
  }
  if (inventory.lm_head) shape.lm_head = stack_shape(*inventory.lm_head);
  return shape;
}

WeightPlaces place_weights(const DeviceModelShape& shape, const ModelConfig& config, kernels::Numerics numerics) {
  Cursor cursor(numerics);
  const int64_t padded_vocab = layout::ceil_div(shape.vocabulary, 8) * 8;
  cursor.places.embedding = cursor.take_bf16(padded_vocab * config.hidden_size);
  for (size_t l = 0; l < shape.layers.size(); ++l) {
    const bool is_moe = config.layers[l].is_moe;
    LayerPlace layer = place_layer(shape.layers[l], config, is_moe, &cursor);
    cursor.places.layers.push_back(std::move(layer));
  }
  cursor.places.final_norm = cursor.take_bf16(config.hidden_size);
  if (shape.lm_head) {
    StackShape head = *shape.lm_head;
    if (!head.is_w4) head.n = padded_vocab;
    cursor.places.lm_head = cursor.take_stack(head);
  } else {
    StackPlace& head = cursor.places.lm_head;
    head.shape.n = padded_vocab;
    head.shape.k = config.hidden_size;
    head.weights = cursor.places.embedding;
    head.expert_stride = static_cast<int64_t>(head.weights.bytes);
  }
  return std::move(cursor.places);
}

size_t bytes_read_per_token(const WeightPlaces& places, const ModelConfig& config) {
  const bool tied = places.lm_head.weights.offset == places.embedding.offset;
  size_t bytes = places.total - (tied ? 0 : aligned(places.embedding.bytes));
  if (places.expert_bytes == 0) return bytes;
  const auto experts = static_cast<size_t>(config.router.num_experts);
  return bytes - places.expert_bytes + places.expert_bytes / experts * static_cast<size_t>(config.router.top_k);
}

DeviceMatrix matrix_at(const StackPlace& place, uint8_t* base, kernels::Numerics numerics) {
  DeviceMatrix matrix;
  matrix.shape = place.shape;
  if (place.bias.bytes > 0) matrix.bias = reinterpret_cast<const float*>(place_at(base, place.bias.offset));
  uint8_t* const weights = place_at(base, place.weights.offset);
  if (!place.shape.is_w4) {
    matrix.bf16 = reinterpret_cast<const uint16_t*>(weights);
    return matrix;
  }
  matrix.w4.num_experts = place.shape.num_experts;
  matrix.w4.n = place.shape.n;
  matrix.w4.k = place.shape.k;
  matrix.w4.group_size = place.shape.group_size;
  matrix.w4.numerics = numerics;
  matrix.w4.weights = weights;
  matrix.w4.expert_stride = place.expert_stride;
  if (place.channel_scale.bytes > 0) {
    matrix.w4.channel_scale = reinterpret_cast<const float*>(place_at(base, place.channel_scale.offset));
  }
  matrix.w4.bias = matrix.bias;
  return matrix;
}

}  // namespace quadrille::model
