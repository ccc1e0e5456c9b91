// SPDX-License-Identifier: Apache-2.0
// The list of matrices of a PlanShape, and the sums over it.
#include "plan/shape.h"

namespace quadrille::plan {
namespace {

using layout::LayerShard;
using layout::MlpShard;
using model::ModelConfig;

class Lister {
 public:
  explicit Lister(const PlanShape& shape) : shape_(shape), config_(shape.config) {}

  void add_layer(int64_t layer) {
    layer_ = layer;
    const LayerForms& forms = shape_.forms[static_cast<size_t>(layer)];
    norm(config_.hidden_size);
    norm(config_.hidden_size);
    if (shape_.latent) {
      add_latent(*shape_.latent, forms);
    } else {
      add_heads(forms);
    }
    if (!config_.layers[static_cast<size_t>(layer)].is_moe) {
      add_mlp(PlanPart::kDense, &LayerShard::dense, config_.dense_width, forms.dense_up, forms.dense_down);
      return;
    }
    const int64_t experts = config_.router.num_experts;
    vector(PlanPart::kRouter, experts, config_.hidden_size);
    if (shape_.has_router_bias) vector(PlanPart::kRouter, experts, 1).is_f32 = true;
    const size_t first = list.size();
    add_mlp(PlanPart::kExperts, &LayerShard::experts, config_.expert_width, forms.experts_up, forms.experts_down);
    for (size_t i = first; i < list.size(); ++i) {
      list[i].count = experts;
      list[i].has_bias = shape_.has_expert_biases;
    }
    if (config_.shared_width > 0) {
      add_mlp(PlanPart::kShared, &LayerShard::shared, config_.shared_width, forms.shared_up, forms.shared_down);
    }
    if (config_.shared_has_gate) vector(PlanPart::kRouter, 1, config_.hidden_size);
  }

  PlanMatrix& add(PlanPart part, PlanCut cut, int64_t n, int64_t k, const LinearForm& form) {
    PlanMatrix m;
    m.part = part;
    m.cut = cut;
    m.layer = layer_;
    m.n = n;
    m.k = k;
    m.form = form;
    list.push_back(m);
    return list.back();
  }
  PlanMatrix& vector(PlanPart part, int64_t n, int64_t k) {
    PlanMatrix& m = add(part, PlanCut::kWhole, n, k, {false, 0});
    m.row_major = true;
    return m;
  }
  void norm(int64_t width) { vector(PlanPart::kNorms, width, 1); }

  std::vector<PlanMatrix> list;

 private:
  void add_head_rows(PlanCut cut, int64_t heads, int64_t rows, int64_t k, const LinearForm& form) {
    add(PlanPart::kAttention, cut, heads * rows, k, form).rows_per_head = rows;
  }

  void add_heads(const LayerForms& forms) {
    const size_t first = list.size();
    add_head_rows(PlanCut::kHeads, config_.num_heads, config_.head_dim, config_.hidden_size, forms.q);
    add_head_rows(PlanCut::kKvHeads, config_.num_kv_heads, config_.head_dim, config_.hidden_size, forms.k);
    add_head_rows(PlanCut::kKvHeads, config_.num_kv_heads, config_.head_dim, config_.hidden_size, forms.v);
    for (size_t i = first; i < list.size(); ++i) list[i].has_bias = config_.qkv_bias;
    add_output(forms).has_bias = config_.o_bias;
    if (config_.qk_norm == model::QkNorm::kPerHead) {
      norm(config_.head_dim);
      norm(config_.head_dim);
    } else if (config_.qk_norm == model::QkNorm::kWholeProjection) {
      norm(config_.q_width());
      norm(config_.kv_width());
    }
    if (shape_.has_sinks) add_head_rows(PlanCut::kHeads, config_.num_heads, 1, 1, {false, 0});
  }

  // The second matrix of keys and values stays bf16: decode multiplies by it head by head (absorbed), not as a W4A8
  // product.
  void add_latent(const LatentAttention& a, const LayerForms& forms) {
    const int64_t query = a.nope_dim + a.rope_dim;
    if (a.q_rank > 0) {
      add(PlanPart::kAttention, PlanCut::kWhole, a.q_rank, config_.hidden_size, forms.q);
      norm(a.q_rank);
    }
    add_head_rows(PlanCut::kHeads, config_.num_heads, query, a.q_rank > 0 ? a.q_rank : config_.hidden_size, forms.q);
    add(PlanPart::kAttention, PlanCut::kWhole, a.kv_rank + a.rope_dim, config_.hidden_size, forms.k);
    norm(a.kv_rank);
    add_head_rows(PlanCut::kHeads, config_.num_heads, a.nope_dim + a.value_dim, a.kv_rank, {false, 0});
    add_output(forms);
  }

  PlanMatrix& add_output(const LayerForms& forms) {
    return add(PlanPart::kAttention, PlanCut::kOutput, config_.hidden_size, config_.q_width(), forms.o);
  }

  void add_mlp(PlanPart part, MlpShard LayerShard::*mlp, int64_t width, const LinearForm& up, const LinearForm& down) {
    add(part, PlanCut::kGateUp, 2 * width, config_.hidden_size, up).mlp = mlp;
    add(part, PlanCut::kDown, config_.hidden_size, width, down).mlp = mlp;
  }

  const PlanShape& shape_;
  const ModelConfig& config_;
  int64_t layer_ = 0;
};

int64_t numbers(const PlanMatrix& m) {
  return m.n * m.k + (m.has_bias ? m.n : 0);
}

layout::KFormat k_format(int64_t k, const LinearForm& form) {
  return {k, form.is_w4, form.is_w4 ? form.group_size : 0};
}

}  // namespace

const char* plan_part_name(PlanPart part) {
  constexpr const char* kNames[kNumPlanParts] = {"embedding", "attention", "router", "experts",
                                                 "shared",    "dense",     "norms",  "head"};
  return kNames[static_cast<int>(part)];
}

std::vector<PlanMatrix> plan_matrices(const PlanShape& shape) {
  const ModelConfig& config = shape.config;
  Lister lister(shape);
  lister.add(PlanPart::kEmbedding, PlanCut::kVocabulary, config.vocab_size, config.hidden_size, {false, 0}).row_major =
      !config.tie_word_embeddings;
  for (int64_t l = 0; l < config.num_layers; ++l) lister.add_layer(l);
  lister.norm(config.hidden_size);
  if (!config.tie_word_embeddings) {
    lister.add(PlanPart::kHead, PlanCut::kVocabulary, config.vocab_size, config.hidden_size, {false, 0});
  }
  return std::move(lister.list);
}

layout::ModelShape shard_shape(const PlanShape& shape) {
  const ModelConfig& config = shape.config;
  layout::ModelShape out;
  out.vocabulary = config.vocab_size;
  out.num_heads = config.num_heads;
  out.num_kv_heads = config.num_kv_heads;
  out.head_dim = config.head_dim;
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerForms& forms = shape.forms[l];
    layout::LayerShape layer;
    layer.qkv_w4 = forms.q.is_w4 || forms.k.is_w4 || forms.v.is_w4;
    layer.o = k_format(config.q_width(), forms.o);
    if (config.layers[l].is_moe) {
      layer.experts_down = k_format(config.expert_width, forms.experts_down);
      if (config.shared_width > 0) layer.shared_down = k_format(config.shared_width, forms.shared_down);
    } else {
      layer.dense_down = k_format(config.dense_width, forms.dense_down);
    }
    out.layers.push_back(layer);
  }
  return out;
}

int64_t num_parameters(const PlanShape& shape) {
  int64_t sum = 0;
  for (const PlanMatrix& m : plan_matrices(shape)) sum += m.count * numbers(m);
  return sum;
}

int64_t num_active_parameters(const PlanShape& shape) {
  int64_t sum = 0;
  for (const PlanMatrix& m : plan_matrices(shape)) {
    if (m.part == PlanPart::kEmbedding && !shape.config.tie_word_embeddings) continue;
    sum += (m.part == PlanPart::kExperts ? shape.config.router.top_k : m.count) * numbers(m);
  }
  return sum;
}

int64_t cache_values(const PlanShape& shape, int64_t kv_heads) {
  if (shape.latent) return shape.latent->kv_rank + shape.latent->rope_dim;
  return 2 * kv_heads * shape.config.head_dim;
}

}  // namespace quadrille::plan
