// SPDX-License-Identifier: Apache-2.0
// Views and sizes of prepared weights.
#include "model/weights.h"

#include "core/check.h"

namespace quadrille::model {
namespace {

moe::GatedMlp mlp_view(const MlpStore& store, int64_t hidden) {
  moe::GatedMlp mlp;
  mlp.hidden = hidden;
  mlp.width = store.width;
  mlp.down_offset = store.down_offset;
  mlp.down_k = store.down.k;
  mlp.gate_up = store.gate_up.view();
  mlp.down = store.down.view();
  return mlp;
}

moe::MoeLayer moe_view(const LayerStore& layer, const ModelConfig& config) {
  moe::MoeLayer moe;
  moe.rule = config.router;
  moe.router_weight = layer.router.data();
  moe.experts = mlp_view(layer.experts, config.hidden_size);
  if (layer.placement) moe.placement = &*layer.placement;
  moe.expert_rank = layer.expert_rank;
  moe.guard = layer.guard;
  if (config.shared_width > 0) moe.shared = mlp_view(layer.shared, config.hidden_size);
  if (!layer.shared_gate.empty()) moe.shared_gate_weight = layer.shared_gate.data();
  const Status legal = check_layer(moe);
  QD_CHECK(legal.ok(), legal.ok() ? "" : legal.error().message);
  return moe;
}

const uint16_t* data_or_null(const NormStore& store) {
  return store.empty() ? nullptr : store.data();
}

uint64_t bytes_of(const std::vector<uint16_t>& values) {
  return values.size() * sizeof(uint16_t);
}

LayerView layer_view(LayerStore* layer, const ModelConfig& config, bool is_moe) {
  for (LinearStore* store : {&layer->q, &layer->k, &layer->v, &layer->o}) store->seal();
  for (MlpStore* store : {&layer->experts, &layer->shared, &layer->dense}) {
    store->gate_up.seal();
    store->down.seal();
  }
  LayerView view;
  AttentionView& attention = view.attention;
  attention.input_norm = layer->input_norm.data();
  attention.q = layer->q.view();
  attention.k = layer->k.view();
  attention.v = layer->v.view();
  attention.o = layer->o.view();
  attention.q_norm = data_or_null(layer->q_norm);
  attention.k_norm = data_or_null(layer->k_norm);
  view.post_attention_norm = layer->post_attention_norm.data();
  if (is_moe) {
    view.feed_forward = moe_view(*layer, config);
  } else {
    view.feed_forward = mlp_view(layer->dense, config.hidden_size);
  }
  return view;
}

}  // namespace

void LinearStore::reserve(int64_t num_experts, bool quantised) {
  bf16.resize(quantised ? 0 : num_experts);
  w4.resize(quantised ? num_experts : 0);
  is_w4 = quantised;
}

void LinearStore::seal() {
  w4_views_.clear();
  bf16_views_.clear();
  for (const auto& matrix : w4) w4_views_.push_back(matrix.view());
  for (const auto& matrix : bf16) bf16_views_.push_back(matrix.view());
  bias_view_ = bias.empty() ? nullptr : bias.data();
}

moe::Linear LinearStore::view() const {
  const float* const* biases = bias_view_ == nullptr ? nullptr : &bias_view_;
  if (!is_w4) return moe::Bf16Linear{static_cast<int64_t>(bf16.size()), n, k, bf16_views_.data(), biases};
  return moe::W4Linear{static_cast<int64_t>(w4.size()), n, k, group_size, w4_views_.data(), biases};
}

uint64_t LinearStore::bytes() const {
  uint64_t total = bias.size() * sizeof(float);
  for (const auto& matrix : w4) total += static_cast<uint64_t>(matrix.size_bytes());
  for (const auto& matrix : bf16) total += static_cast<uint64_t>(matrix.size_bytes());
  return total;
}

uint64_t LayerStore::bytes() const {
  uint64_t total = 0;
  for (const auto* values : {&input_norm, &post_attention_norm, &q_norm, &k_norm, &router, &shared_gate}) {
    total += bytes_of(*values);
  }
  for (const auto* store : {&q, &k, &v, &o}) total += store->bytes();
  for (const auto* store : {&experts, &shared, &dense}) total += store->bytes();
  return total;
}

DecoderView ModelWeights::seal(const ModelConfig& config) {
  DecoderView view;
  lm_head.seal();
  view.lm_head = lm_head.view();
  view.final_norm = final_norm.data();
  if (!mapped_embedding.empty()) {
    view.embedding.rows = mapped_embedding.data();
  } else if (embedding.empty()) {
    QD_CHECK(lm_head.bf16.size() == 1, "a tied embedding lives in a bf16 lm_head");
    view.embedding.lanes16 = lm_head.bf16[0].view();
  } else {
    view.embedding.rows = embedding.data();
  }
  for (int64_t l = 0; l < config.num_layers; ++l) {
    view.layers.push_back(layer_view(&layers[l], config, config.layers[l].is_moe));
  }
  return view;
}

void ModelWeights::seal_experts(int64_t layer, const ModelConfig& config, DecoderView* view) {
  LayerStore& store = layers[layer];
  store.experts.gate_up.seal();
  store.experts.down.seal();
  view->layers[layer].feed_forward = moe_view(store, config);
}

uint64_t ModelWeights::bytes() const {
  uint64_t total = bytes_of(embedding) + mapped_embedding.size_bytes() + bytes_of(final_norm) + lm_head.bytes();
  for (const LayerStore& layer : layers) total += layer.bytes();
  return total;
}

uint64_t ModelWeights::expert_bytes() const {
  uint64_t total = 0;
  for (const LayerStore& layer : layers) total += layer.experts.bytes();
  return total;
}

uint64_t ModelWeights::bytes_read_per_token(const ModelConfig& config) const {
  const uint64_t experts = expert_bytes();
  const uint64_t all_but_embedding = bytes() - bytes_of(embedding) - mapped_embedding.size_bytes();
  if (experts == 0) return all_but_embedding;
  const auto num_experts = static_cast<uint64_t>(config.router.num_experts);
  return all_but_embedding - experts + experts / num_experts * static_cast<uint64_t>(config.router.top_k);
}

}  // namespace quadrille::model
