// SPDX-License-Identifier: Apache-2.0
// Pools and the windows into them. A window begins at a place of its own for every matrix, so no two are equal.
#include "model/device_random.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "layout/w4_hopper64.h"
#include "layout/w4_lanes16.h"
#include "model/random_numbers.h"
#include "numerics/bf16.h"

namespace quadrille::model {
namespace {

constexpr size_t kCodePool = size_t{64} << 20;
constexpr size_t kScalePool = size_t{4} << 20;  // bytes, one for each k
constexpr size_t kDensePool = size_t{8} << 20;

size_t part_code_bytes(const StackShape& s, int32_t parts) {
  return static_cast<size_t>(s.n / parts * s.k / 2);
}
size_t part_scale_bytes(const StackShape& s, int32_t parts) {
  return 2 * static_cast<size_t>(s.n / parts * layout::num_groups(s.k, s.group_size));
}

template <typename Visit>
void for_stacks(const DeviceModelShape& shape, const Visit& visit) {
  for (const DeviceLayerShape& layer : shape.layers) {
    for (const StackShape* stack : {&layer.q, &layer.k, &layer.v, &layer.o}) visit(*stack);
    for (const auto* mlp : {&layer.experts, &layer.shared, &layer.dense}) {
      if (!*mlp) continue;
      visit((*mlp)->gate_up);
      visit((*mlp)->down);
    }
  }
}

struct PoolSizes {
  size_t codes = kCodePool, scales = kScalePool;
};
// Twice the largest matrix at least, so that windows differ. q, k and v may lie in one.
PoolSizes pool_sizes(const DeviceModelShape& shape) {
  PoolSizes sizes;
  for_stacks(shape, [&](const StackShape& stack) {
    if (!stack.is_w4) return;
    sizes.codes = std::max(sizes.codes, 4 * part_code_bytes(stack, 1));
    sizes.scales = std::max(sizes.scales, 4 * part_scale_bytes(stack, 1));
  });
  return sizes;
}

class Maker {
 public:
  Maker(const WeightPlaces& places, const ModelConfig& config, const RandomModel& random, const LoadOptions& options,
        const kernels::DeviceTable& table, uint8_t* base, const prepare::PrepareStreams& streams, PoolSizes sizes)
      : places_(places),
        config_(config),
        options_(options),
        table_(table),
        base_(base),
        streams_(streams),
        stream_(streams.prepare),
        sizes_(sizes),
        random_(random.seed) {}

  Status make() {
    QD_TRY_STATUS(open());
    QD_TRY_STATUS(tile(places_.embedding, 1.0f));
    for (size_t l = 0; l < places_.layers.size(); ++l) {
      if (options_.cancel != nullptr && options_.cancel->load()) {
        return make_error(ErrorCode::kCancelled, "stopped before random layer {} of {}", l, places_.layers.size());
      }
      QD_TRY_STATUS(make_layer(places_.layers[l]));
      const auto done = static_cast<int64_t>(l + 1);
      if (options_.progress) {
        options_.progress({done, static_cast<int64_t>(places_.layers.size()), 0, 0, fmt::format("random layer {}", l)});
      }
    }
    QD_TRY_STATUS(ones(places_.final_norm));
    if (places_.lm_head.weights.offset != places_.embedding.offset) {
      QD_TRY_STATUS(tile(places_.lm_head.weights, deviation_for(config_.hidden_size)));
    }
    return close();
  }

 private:
  Status open() {
    std::vector<uint64_t> codes(sizes_.codes / sizeof(uint64_t));
    for (uint64_t& word : codes) word = centred_codes(random_.next());
    QD_TRY(codes_, upload(codes.data(), sizes_.codes));
    QD_TRY(status_, device::Buffer::allocate(sizeof(uint32_t), stream_));
    return device::fill(status_.get(), 0, sizeof(uint32_t), stream_);
  }

  Status close() {
    uint32_t flags = 0;
    QD_TRY_STATUS(device::leave(device::HandOver::kWeightsPrepared, streams_.done, stream_));
    QD_TRY_STATUS(device::copy_to_host(&flags, status_.get(), sizeof flags, stream_));
    QD_TRY_STATUS(device::synchronize(stream_));
    if (flags == 0) return {};
    return make_error(ErrorCode::kInvalidData, "random weights: the preparation refused one (flags {})", flags);
  }

  Result<device::Buffer> upload(const void* from, size_t bytes) {
    QD_TRY(device::Buffer buffer, device::Buffer::allocate(bytes, stream_));
    QD_TRY_STATUS(device::copy_to_device(buffer.get(), from, bytes, stream_));
    QD_TRY_STATUS(device::synchronize(stream_));  // `from` may go
    return buffer;
  }

  // bf16 values uniform about `middle`, as far from it as `range`.
  Result<device::Buffer> bf16_pool(size_t bytes, float middle, float range) {
    std::vector<uint16_t> values(bytes / sizeof(uint16_t));
    for (uint16_t& v : values) v = numerics::bf16_from_f32(middle + range * uniform(random_.next() >> 48));
    return upload(values.data(), bytes);
  }

  // Scales of matrices with these in features.
  Result<const device::Buffer*> scales_for(int64_t k) {
    const auto known = scales_.find(k);
    if (known != scales_.end()) return &known->second;
    const float scale = deviation_for(k) / std::sqrt(kCentredCodeSquare);
    QD_TRY(device::Buffer pool, bf16_pool(sizes_.scales, scale, scale / 3));
    return &scales_.emplace(k, std::move(pool)).first->second;
  }
  Result<const device::Buffer*> dense_for(float deviation) {
    const auto known = dense_.find(deviation);
    if (known != dense_.end()) return &known->second;
    QD_TRY(device::Buffer pool, bf16_pool(kDensePool, 0.0f, deviation * std::sqrt(3.0f)));
    return &dense_.emplace(deviation, std::move(pool)).first->second;
  }

  // A window of `bytes` into the pool, at a multiple of 4.
  const uint8_t* window(const device::Buffer& pool, size_t bytes) {
    const size_t room = (pool.size_bytes() - bytes) / 4;
    return pool.as<uint8_t>() + (room == 0 ? 0 : random_.next() % room) * 4;
  }

  Status tile(const Place& place, float deviation) {
    QD_TRY(const device::Buffer* pool, dense_for(deviation));
    for (size_t at = 0; at < place.bytes;) {
      const size_t bytes = std::min(place.bytes - at, kDensePool / 2);
      QD_TRY_STATUS(device::copy_on_device(base_ + place.offset + at, window(*pool, bytes), bytes, stream_));
      at += bytes;
    }
    return {};
  }

  Status ones(const Place& place) {
    if (place.bytes == 0) return {};
    const std::vector<uint16_t> values(place.bytes / 2, numerics::bf16_from_f32(1.0f));
    QD_TRY_STATUS(device::copy_to_device(base_ + place.offset, values.data(), place.bytes, stream_));
    return device::synchronize(stream_);
  }

  Status stack(const StackPlace& place, int32_t parts) {
    const StackShape& shape = place.shape;
    if (place.bias.bytes > 0) {
      QD_TRY_STATUS(device::fill(base_ + place.bias.offset, 0, place.bias.bytes, stream_));
    }
    if (!shape.is_w4) return tile(place.weights, deviation_for(shape.k));
    QD_TRY(const device::Buffer* scales, scales_for(shape.k));
    std::vector<prepare::DeviceW4Expert> experts(static_cast<size_t>(shape.num_experts));
    for (prepare::DeviceW4Expert& expert : experts) {
      for (int32_t part = 0; part < parts; ++part) {
        expert.codes[part] = window(codes_, part_code_bytes(shape, parts));
        expert.scales[part] = window(*scales, part_scale_bytes(shape, parts));
      }
    }
    prepare::DeviceW4Source source;
    source.numerics = options_.numerics;
    source.part_n = shape.n / parts;
    source.num_parts = parts;
    source.k = shape.k;
    source.group_size = shape.group_size;
    source.experts = experts;
    prepare::DeviceW4Destination to;
    to.weights = base_ + place.weights.offset;
    if (place.channel_scale.bytes > 0) to.channel_scale = reinterpret_cast<float*>(base_ + place.channel_scale.offset);
    return prepare_on_device(table_, source, to, nullptr, streams_, status_.as<uint32_t>());
  }

  Status mlp(const std::optional<MlpPlace>& place) {
    if (!place) return {};
    QD_TRY_STATUS(stack(place->gate_up, 2));
    return stack(place->down, 1);
  }

  Status make_layer(const LayerPlace& layer) {
    for (const Place* norm : {&layer.input_norm, &layer.post_attention_norm, &layer.q_norm, &layer.k_norm}) {
      QD_TRY_STATUS(ones(*norm));
    }
    for (const StackPlace& part : layer.qkv) QD_TRY_STATUS(stack(part, 1));
    QD_TRY_STATUS(stack(layer.o, 1));
    const float deviation = deviation_for(config_.hidden_size);
    if (layer.router.bytes > 0) QD_TRY_STATUS(tile(layer.router, 3.5f * deviation));
    if (layer.shared_gate.bytes > 0) QD_TRY_STATUS(tile(layer.shared_gate, deviation));
    QD_TRY_STATUS(mlp(layer.experts));
    QD_TRY_STATUS(mlp(layer.shared));
    return mlp(layer.dense);
  }

  const WeightPlaces& places_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  const kernels::DeviceTable& table_;
  uint8_t* base_;
  const prepare::PrepareStreams& streams_;
  device::Stream stream_;
  PoolSizes sizes_;
  Random random_;
  device::Buffer codes_, status_;
  std::map<int64_t, device::Buffer> scales_;  // by in features
  std::map<float, device::Buffer> dense_;     // by deviation
};

StackShape random_stack(int64_t n, int64_t k, int64_t experts, const RandomModel& random, bool w4, bool bias = false) {
  StackShape shape;
  shape.num_experts = experts;
  shape.n = n;
  shape.k = k;
  shape.is_w4 = w4;
  shape.group_size = w4 ? random.group_size : 0;
  shape.has_bias = bias;
  return shape;
}

MlpShape random_mlp(int64_t width, int64_t hidden, int64_t experts, const RandomModel& random) {
  return {width, 0, random_stack(2 * width, hidden, experts, random, true),
          random_stack(hidden, width, experts, random, true)};
}

}  // namespace

DeviceModelShape random_device_shape(const ModelConfig& config, const RandomModel& random) {
  const int64_t hidden = config.hidden_size;
  DeviceModelShape shape;
  shape.vocabulary = config.vocab_size;
  for (const LayerConfig& layer_config : config.layers) {
    DeviceLayerShape layer;
    const bool w4 = random.quantise_attention;
    layer.q = random_stack(config.q_width(), hidden, 1, random, w4, config.qkv_bias);
    layer.k = random_stack(config.kv_width(), hidden, 1, random, w4, config.qkv_bias);
    layer.v = layer.k;
    layer.o = random_stack(hidden, config.q_width(), 1, random, w4, config.o_bias);
    if (!layer_config.is_moe) {
      layer.dense = random_mlp(config.dense_width, hidden, 1, random);
    } else {
      layer.experts = random_mlp(config.expert_width, hidden, config.router.num_experts, random);
      if (config.shared_width > 0) layer.shared = random_mlp(config.shared_width, hidden, 1, random);
    }
    shape.layers.push_back(layer);
  }
  if (!config.tie_word_embeddings) shape.lm_head = random_stack(config.vocab_size, hidden, 1, random, false);
  return shape;
}

uint64_t random_device_bytes(const DeviceModelShape& shape) {
  const PoolSizes sizes = pool_sizes(shape);
  constexpr uint64_t kScalePools = 4, kDensePools = 8;  // in features and deviations that differ, generously
  return sizes.codes + kScalePools * sizes.scales + kDensePools * kDensePool;
}

Status make_random_weights(const DeviceModelShape& shape, const WeightPlaces& places, const ModelConfig& config,
                           const RandomModel& random, const LoadOptions& options, const kernels::DeviceTable& table,
                           uint8_t* base, const prepare::PrepareStreams& streams) {
  return Maker(places, config, random, options, table, base, streams, pool_sizes(shape)).make();
}

}  // namespace quadrille::model
