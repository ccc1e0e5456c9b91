// SPDX-License-Identifier: Apache-2.0
// A model of a given shape out of a seed, in memory: for benchmarks of shapes whose checkpoints nobody wants on disk.
// Every matrix has its own stream of numbers, so the split over threads changes nothing.
#include <cmath>

#include "kernels/api/table.h"
#include "layout/w4_lanes16.h"
#include "model/load_weights.h"
#include "numerics/bf16.h"

namespace quadrille::model {
namespace {

// splitmix64: a counter run through a mixer.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// Uniform on [-1, 1) from 16 bits has a standard deviation of 1 / sqrt(3).
float uniform(uint64_t bits) {
  return static_cast<float>(static_cast<int16_t>(bits & 0xffff)) * 0x1p-15f;
}

std::vector<uint16_t> random_bf16(uint64_t seed, int64_t count, float deviation) {
  Random random(seed);
  std::vector<uint16_t> values(count);
  const float range = deviation * std::sqrt(3.0f);
  uint64_t bits = 0;
  for (int64_t i = 0; i < count; ++i) {
    bits = i % 4 == 0 ? random.next() : bits >> 16;
    values[i] = numerics::bf16_from_f32(range * uniform(bits));
  }
  return values;
}

class Maker {
 public:
  Maker(const ModelConfig& config, const RandomModel& random, const LoadOptions& options)
      : config_(config), random_(random), options_(options), seeds_(random.seed) {}

  Result<ModelWeights> make() {
    ModelWeights weights;
    const float embedding_deviation = 1.0f;
    const float head_deviation = deviation_for(config_.hidden_size);
    weights.final_norm = norm(config_.hidden_size);
    if (config_.tie_word_embeddings) {
      QD_TRY_STATUS(dense(config_.vocab_size, config_.hidden_size, &weights.lm_head));
    } else {
      weights.embedding = random_bf16(seeds_.next(), config_.vocab_size * config_.hidden_size, embedding_deviation);
      QD_TRY_STATUS(dense(config_.vocab_size, config_.hidden_size, &weights.lm_head, head_deviation));
    }
    weights.layers.resize(config_.num_layers);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      if (options_.cancel != nullptr && options_.cancel->load()) {
        return make_error(ErrorCode::kCancelled, "stopped before random layer {} of {}", l, config_.num_layers);
      }
      QD_TRY_STATUS(make_layer(config_.layers[l], &weights.layers[l]));
      if (options_.progress) options_.progress({l + 1, config_.num_layers, 0, 0, fmt::format("random layer {}", l)});
    }
    return weights;
  }

 private:
  static float deviation_for(int64_t k) { return 1.0f / std::sqrt(static_cast<float>(k)); }
  static std::vector<uint16_t> norm(int64_t width) {
    return std::vector<uint16_t>(width, numerics::bf16_from_f32(1.0f));
  }

  Status dense(int64_t n, int64_t k, LinearStore* store, float deviation = 0) {
    store->n = n;
    store->k = k;
    store->reserve(1, false);
    const auto values = random_bf16(seeds_.next(), n * k, deviation > 0 ? deviation : deviation_for(k));
    QD_TRY(store->bf16[0], prepare::prepare_bf16({n, k, prepare::DenseType::kBf16, values.data()}, options_.pool));
    return {};
  }

  Result<prepare::PreparedW4> quantised(uint64_t seed, int64_t n, int64_t k, ThreadPool* pool) const {
    Random random(seed);
    std::vector<uint64_t> codes((n * k + 15) / 16);
    for (uint64_t& word : codes) word = random.next();
    // Codes are uniform on -8..7: their rms is sqrt(21.5). Scales spread over a factor of two.
    const float scale = deviation_for(k) / std::sqrt(21.5f);
    std::vector<uint16_t> scales(n * layout::num_groups(k, random_.group_size));
    for (uint16_t& s : scales) s = numerics::bf16_from_f32(scale * (1.0f + uniform(random.next()) / 3));
    prepare::CanonicalW4 matrix;
    matrix.n = n;
    matrix.k = k;
    matrix.group_size = random_.group_size;
    matrix.packed = codes.data();
    matrix.scales = scales.data();
    return prepare::prepare_w4(matrix, options_.numerics, pool);
  }

  Status linear(int64_t n, int64_t k, int64_t num_experts, LinearStore* store) {
    QD_TRY_STATUS(kernels::check_w4a8_shape(n, k, random_.group_size));
    store->n = n;
    store->k = k;
    store->group_size = random_.group_size;
    store->reserve(num_experts, true);
    const uint64_t seed = seeds_.next();
    if (num_experts == 1) {
      QD_TRY(store->w4[0], quantised(seed, n, k, options_.pool));
      return {};
    }
    std::vector<Status> status(num_experts);
    options_.pool->run(num_experts, [&](int64_t e) {
      auto matrix = quantised(seed ^ (static_cast<uint64_t>(e) << 40), n, k, nullptr);
      if (matrix) {
        store->w4[e] = std::move(*matrix);
      } else {
        status[e] = matrix.error();
      }
    });
    for (const Status& one : status) QD_TRY_STATUS(one);
    return {};
  }

  Status attention_matrix(int64_t n, int64_t k, bool has_bias, LinearStore* store) {
    if (has_bias) store->bias.assign(n, 0.0f);
    return random_.quantise_attention ? linear(n, k, 1, store) : dense(n, k, store);
  }

  Status mlp(int64_t width, int64_t num_experts, MlpStore* store) {
    store->width = width;
    QD_TRY_STATUS(linear(2 * width, config_.hidden_size, num_experts, &store->gate_up));
    return linear(config_.hidden_size, width, num_experts, &store->down);
  }

  Status make_layer(const LayerConfig& layer_config, LayerStore* layer) {
    const int64_t hidden = config_.hidden_size;
    layer->input_norm = norm(hidden);
    layer->post_attention_norm = norm(hidden);
    if (config_.qk_norm != QkNorm::kNone) {
      const bool per_head = config_.qk_norm == QkNorm::kPerHead;
      layer->q_norm = norm(per_head ? config_.head_dim : config_.q_width());
      layer->k_norm = norm(per_head ? config_.head_dim : config_.kv_width());
    }
    QD_TRY_STATUS(attention_matrix(config_.q_width(), hidden, config_.qkv_bias, &layer->q));
    QD_TRY_STATUS(attention_matrix(config_.kv_width(), hidden, config_.qkv_bias, &layer->k));
    QD_TRY_STATUS(attention_matrix(config_.kv_width(), hidden, config_.qkv_bias, &layer->v));
    QD_TRY_STATUS(attention_matrix(hidden, config_.q_width(), config_.o_bias, &layer->o));
    if (!layer_config.is_moe) return mlp(config_.dense_width, 1, &layer->dense);
    const float router_deviation = 3.5f * deviation_for(hidden);
    layer->router = random_bf16(seeds_.next(), config_.router.num_experts * hidden, router_deviation);
    QD_TRY_STATUS(mlp(config_.expert_width, config_.router.num_experts, &layer->experts));
    if (config_.shared_width == 0) return {};
    if (config_.shared_has_gate) layer->shared_gate = random_bf16(seeds_.next(), hidden, deviation_for(hidden));
    return mlp(config_.shared_width, 1, &layer->shared);
  }

  const ModelConfig& config_;
  const RandomModel& random_;
  const LoadOptions& options_;
  Random seeds_;
};

}  // namespace

Result<ModelWeights> random_weights(const ModelConfig& config, const RandomModel& random, const LoadOptions& options) {
  return Maker(config, random, options).make();
}

}  // namespace quadrille::model
