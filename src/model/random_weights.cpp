// SPDX-License-Identifier: Apache-2.0
// A model of a given shape out of a seed, in memory: for benchmarks of shapes whose checkpoints nobody wants on disk.
// Every matrix has its own stream of numbers, so the split over threads changes nothing. A rank makes each whole
// matrix, cuts what it holds and drops the rest: its weights are the shard of the model of one rank, bit for bit.
#include <cmath>
#include <numeric>

#include "kernels/api/table.h"
#include "layout/w4_lanes16.h"
#include "model/load_weights.h"
#include "model/random_numbers.h"
#include "numerics/bf16.h"
#include "parallel/communicator.h"
#include "prepare/shard.h"

namespace quadrille::model {
namespace {

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

// What a rank takes of a matrix; neither: all of it.
struct Cut {
  std::vector<layout::Range> rows;  // one matrix below the other
  std::optional<layout::KShard> columns;
};

struct MlpCut {
  Cut gate_up, down;
  int64_t width = 0, down_offset = 0;
};

class Maker {
 public:
  Maker(const ModelConfig& config, const RandomModel& random, const LoadOptions& options,
        const layout::ModelShard* shard, const moe::Placement* placement)
      : config_(config),
        random_(random),
        options_(options),
        shard_(shard),
        placement_(placement),
        seeds_(random.seed) {}

  Result<ModelWeights> make() {
    ModelWeights weights;
    const float embedding_deviation = 1.0f;
    const float head_deviation = deviation_for(config_.hidden_size);
    weights.final_norm = norm(config_.hidden_size);
    const layout::Range rows = shard_ == nullptr ? layout::Range{0, config_.vocab_size} : shard_->vocabulary;
    const Cut cut{{rows}, {}};
    if (config_.tie_word_embeddings) {
      QD_TRY_STATUS(dense(config_.vocab_size, config_.hidden_size, cut, &weights.lm_head));
    } else {
      const auto all = random_bf16(seeds_.next(), config_.vocab_size * config_.hidden_size, embedding_deviation);
      weights.embedding.assign(all.begin() + rows.begin * config_.hidden_size,
                               all.begin() + rows.end * config_.hidden_size);
      QD_TRY_STATUS(dense(config_.vocab_size, config_.hidden_size, cut, &weights.lm_head, head_deviation));
    }
    weights.layers.resize(config_.num_layers);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      if (options_.cancel != nullptr && options_.cancel->load()) {
        return make_error(ErrorCode::kCancelled, "stopped before random layer {} of {}", l, config_.num_layers);
      }
      QD_TRY_STATUS(make_layer(l, &weights.layers[l]));
      if (options_.progress) options_.progress({l + 1, config_.num_layers, 0, 0, fmt::format("random layer {}", l)});
    }
    return weights;
  }

 private:
  static std::vector<uint16_t> norm(int64_t width) {
    return std::vector<uint16_t>(width, numerics::bf16_from_f32(1.0f));
  }

  static void shape_store(int64_t n, int64_t k, const Cut& cut, LinearStore* store) {
    store->n = cut.rows.empty() ? n : 0;
    for (const layout::Range& rows : cut.rows) store->n += rows.size();
    store->k = cut.columns ? cut.columns->k() : k;
  }

  Status dense(int64_t n, int64_t k, const Cut& cut, LinearStore* store, float deviation = 0) {
    shape_store(n, k, cut, store);
    store->reserve(1, false);
    const auto values = random_bf16(seeds_.next(), n * k, deviation > 0 ? deviation : deviation_for(k));
    const prepare::CanonicalDense whole{n, k, prepare::DenseType::kBf16, values.data()};
    prepare::OwnedDense shard;
    std::vector<prepare::CanonicalDense> parts;
    for (const layout::Range& rows : cut.rows) parts.push_back(prepare::column_parallel_shard(whole, rows));
    if (cut.columns) {
      shard = prepare::row_parallel_shard(whole, *cut.columns);
      parts.push_back(shard.view());
    }
    if (parts.empty()) parts.push_back(whole);
    QD_TRY(store->bf16[0], prepare::prepare_bf16(parts, options_.pool));
    return {};
  }

  Result<prepare::PreparedW4> quantised(uint64_t seed, int64_t n, int64_t k, const Cut& cut, ThreadPool* pool) const {
    Random random(seed);
    std::vector<uint64_t> codes((n * k + 15) / 16);
    for (uint64_t& word : codes) word = centred_codes(random.next());
    // Scales spread over a factor of two.
    const float scale = deviation_for(k) / std::sqrt(kCentredCodeSquare);
    std::vector<uint16_t> scales(n * layout::num_groups(k, random_.group_size));
    for (uint16_t& s : scales) s = numerics::bf16_from_f32(scale * (1.0f + uniform(random.next()) / 3));
    prepare::CanonicalW4 whole;
    whole.n = n;
    whole.k = k;
    whole.group_size = random_.group_size;
    whole.packed = codes.data();
    whole.scales = scales.data();
    if (cut.columns) {
      const auto channel = options_.split_scale == moe::SplitScale::kAgreed ? prepare::ChannelScale::kWholeRow
                                                                            : prepare::ChannelScale::kOwnGroups;
      QD_TRY(const prepare::OwnedW4 shard, prepare::row_parallel_shard(whole, *cut.columns, channel));
      return prepare::prepare_w4(shard.view(), options_.numerics, pool);
    }
    std::vector<prepare::CanonicalW4> parts;
    for (const layout::Range& rows : cut.rows) parts.push_back(prepare::column_parallel_shard(whole, rows));
    if (parts.empty()) parts.push_back(whole);
    return prepare::prepare_w4(parts, options_.numerics, pool);
  }

  // One matrix for each of `experts`, by their numbers.
  Status linear(int64_t n, int64_t k, const Cut& cut, const std::vector<int32_t>& experts, LinearStore* store) {
    QD_TRY_STATUS(kernels::check_w4a8_shape(n, k, random_.group_size));
    shape_store(n, k, cut, store);
    store->group_size = random_.group_size;
    store->reserve(static_cast<int64_t>(experts.size()), true);
    const uint64_t seed = seeds_.next();
    if (experts.size() == 1) {
      QD_TRY(store->w4[0], quantised(seed_of(seed, experts[0]), n, k, cut, options_.pool));
      return {};
    }
    std::vector<Status> status(experts.size());
    options_.pool->run(static_cast<int64_t>(experts.size()), [&](int64_t e) {
      auto matrix = quantised(seed_of(seed, experts[e]), n, k, cut, nullptr);
      if (matrix) {
        store->w4[e] = std::move(*matrix);
      } else {
        status[e] = matrix.error();
      }
    });
    for (const Status& one : status) QD_TRY_STATUS(one);
    return {};
  }

  static uint64_t seed_of(uint64_t seed, int32_t expert) { return seed ^ (static_cast<uint64_t>(expert) << 40); }

  Status attention_matrix(int64_t n, int64_t k, const Cut& cut, bool has_bias, LinearStore* store) {
    if (random_.quantise_attention) {
      QD_TRY_STATUS(linear(n, k, cut, {0}, store));
    } else {
      QD_TRY_STATUS(dense(n, k, cut, store));
    }
    if (has_bias) store->bias.assign(store->n, 0.0f);
    return {};
  }

  Status make_attention(int64_t index, LayerStore* layer) {
    const int64_t hidden = config_.hidden_size;
    Cut q, kv, o;
    if (shard_ != nullptr) {
      const layout::AttentionShard& held = shard_->layers[index].attention;
      q.rows = {held.q_rows};
      kv.rows = {held.kv_rows};
      o.columns = held.o;
    }
    const bool has_o_bias = config_.o_bias && (shard_ == nullptr || shard_->adds_row_parallel_bias());
    QD_TRY_STATUS(attention_matrix(config_.q_width(), hidden, q, config_.qkv_bias, &layer->q));
    QD_TRY_STATUS(attention_matrix(config_.kv_width(), hidden, kv, config_.qkv_bias, &layer->k));
    QD_TRY_STATUS(attention_matrix(config_.kv_width(), hidden, kv, config_.qkv_bias, &layer->v));
    return attention_matrix(hidden, config_.q_width(), o, has_o_bias, &layer->o);
  }

  MlpCut mlp_cut(int64_t index, int64_t width, layout::MlpShard layout::LayerShard::*mlp) const {
    MlpCut cut;
    cut.width = width;
    if (shard_ == nullptr) return cut;
    const layout::MlpShard& held = shard_->layers[index].*mlp;
    const layout::Range up{width + held.columns.begin, width + held.columns.end};
    cut.gate_up.rows = {held.columns, up};
    cut.down.columns = held.down;
    cut.width = held.down.held();
    cut.down_offset = held.down.k_offset();
    return cut;
  }

  Status mlp(int64_t width, const MlpCut& cut, const std::vector<int32_t>& experts, MlpStore* store) {
    store->width = cut.width;
    store->down_offset = cut.down_offset;
    QD_TRY_STATUS(linear(2 * width, config_.hidden_size, cut.gate_up, experts, &store->gate_up));
    return linear(config_.hidden_size, width, cut.down, experts, &store->down);
  }

  Status make_experts(int64_t index, LayerStore* layer) {
    std::vector<int32_t> held(config_.router.num_experts);
    std::iota(held.begin(), held.end(), 0);
    if (placement_ != nullptr) {
      layer->placement = *placement_;
      layer->expert_rank = options_.expert_ranks->rank();
      const auto slots = placement_->slots(layer->expert_rank);
      held.assign(slots.begin(), slots.end());
    }
    const MlpCut cut = mlp_cut(index, config_.expert_width, &layout::LayerShard::experts);
    return mlp(config_.expert_width, cut, held, &layer->experts);
  }

  Status make_layer(int64_t index, LayerStore* layer) {
    const int64_t hidden = config_.hidden_size;
    layer->input_norm = norm(hidden);
    layer->post_attention_norm = norm(hidden);
    if (config_.qk_norm != QkNorm::kNone) {
      const bool per_head = config_.qk_norm == QkNorm::kPerHead;
      layer->q_norm = norm(per_head ? config_.head_dim : config_.q_width());
      layer->k_norm = norm(per_head ? config_.head_dim : config_.kv_width());
    }
    QD_TRY_STATUS(make_attention(index, layer));
    if (!config_.layers[index].is_moe) {
      const MlpCut cut = mlp_cut(index, config_.dense_width, &layout::LayerShard::dense);
      return mlp(config_.dense_width, cut, {0}, &layer->dense);
    }
    const float router_deviation = 3.5f * deviation_for(hidden);
    layer->router = random_bf16(seeds_.next(), config_.router.num_experts * hidden, router_deviation);
    QD_TRY_STATUS(make_experts(index, layer));
    if (config_.shared_width == 0) return {};
    if (config_.shared_has_gate) layer->shared_gate = random_bf16(seeds_.next(), hidden, deviation_for(hidden));
    const MlpCut cut = mlp_cut(index, config_.shared_width, &layout::LayerShard::shared);
    return mlp(config_.shared_width, cut, {0}, &layer->shared);
  }

  const ModelConfig& config_;
  const RandomModel& random_;
  const LoadOptions& options_;
  const layout::ModelShard* shard_;
  const moe::Placement* placement_;
  Random seeds_;
};

}  // namespace

layout::ModelShape random_shape(const ModelConfig& config, const RandomModel& random) {
  layout::ModelShape shape;
  shape.vocabulary = config.vocab_size;
  shape.num_heads = config.num_heads;
  shape.num_kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  const auto format = [&](int64_t k, bool is_w4) { return layout::KFormat{k, is_w4, is_w4 ? random.group_size : 0}; };
  for (const LayerConfig& layer_config : config.layers) {
    layout::LayerShape& layer = shape.layers.emplace_back();
    layer.qkv_w4 = random.quantise_attention;
    layer.o = format(config.q_width(), random.quantise_attention);
    if (!layer_config.is_moe) {
      layer.dense_down = format(config.dense_width, true);
      continue;
    }
    layer.experts_down = format(config.expert_width, true);
    if (config.shared_width > 0) layer.shared_down = format(config.shared_width, true);
  }
  return shape;
}

Result<ModelWeights> random_weights(const ModelConfig& config, const RandomModel& random, const LoadOptions& options,
                                    const layout::ModelShard* shard, const moe::Placement* placement) {
  return Maker(config, random, options, shard, placement).make();
}

}  // namespace quadrille::model
