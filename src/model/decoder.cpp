// SPDX-License-Identifier: Apache-2.0
// The steps of a decoder block in their order; each is a function of the kernel table.
#include "model/decoder.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "layout/bf16_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/elementwise.h"

namespace quadrille::model {

using moe::LinearInput;

Status Decoder::run(const Step& step, std::span<float> logits, const std::atomic<bool>* cancel) {
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  if (num_tokens == 0) return {};
  stream_.resize(num_tokens * config_.hidden_size);
  float* x = stream_.data();
  embed(step.ids, x);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return make_error(ErrorCode::kCancelled, "step stopped before layer {} of {}", layer, config_.num_layers);
    }
    QD_TRY_STATUS(run_block(layer, step, x));
    if (observer_ != nullptr) observer_->hidden(layer, x, num_tokens, config_.hidden_size);
  }
  write_logits(step.logit_rows, x, logits);
  return {};
}

// x += attention(norm(x)); x += feed_forward(norm(x)).
Status Decoder::run_block(int64_t layer, const Step& step, float* x) {
  scratch_.reset();
  const LayerView& weights = weights_.layers[layer];
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  const int64_t count = num_tokens * config_.hidden_size;
  float* normed = scratch_.take<float>(count);
  float* update = scratch_.take<float>(count);

  norm(x, weights.attention.input_norm, num_tokens, config_.hidden_size, normed);
  run_attention(layer, step, normed, update);
  execution_.table->add_residual({execution_.rounding, count, x, update}, execution_.kernels);

  norm(x, weights.post_attention_norm, num_tokens, config_.hidden_size, normed);
  QD_TRY_STATUS(run_feed_forward(layer, normed, num_tokens, update));
  execution_.table->add_residual({execution_.rounding, count, x, update}, execution_.kernels);
  return {};
}

void Decoder::run_attention(int64_t layer, const Step& step, const float* normed, float* out) {
  const AttentionView& weights = weights_.layers[layer].attention;
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  float* q = scratch_.take<float>(num_tokens * config_.q_width());
  float* k = scratch_.take<float>(num_tokens * config_.kv_width());
  float* v = scratch_.take<float>(num_tokens * config_.kv_width());
  LinearInput input(normed, num_tokens, config_.hidden_size);
  apply_linear(weights.q, &input, execution_, q);
  apply_linear(weights.k, &input, execution_, k);
  apply_linear(weights.v, &input, execution_, v);
  norm_heads(num_tokens, q, k, weights);
  clip(q, num_tokens * config_.q_width());
  clip(k, num_tokens * config_.kv_width());
  clip(v, num_tokens * config_.kv_width());
  rotate(step, config_.num_heads, q);
  rotate(step, config_.num_kv_heads, k);
  cache_.write(layer, step, k, v, execution_.kernels.pool);

  kernels::Attention problem;
  problem.rounding = execution_.rounding;
  problem.kv_type = cache_.type();
  problem.num_tokens = num_tokens;
  problem.num_heads = config_.num_heads;
  problem.num_kv_heads = config_.num_kv_heads;
  problem.head_dim = config_.head_dim;
  problem.window = config_.layers[layer].window;
  problem.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  problem.q_stride = config_.q_width();
  problem.q = q;
  problem.position = step.positions.data();
  problem.sequence = step.sequences.data();
  problem.page_table = step.page_table.data();
  problem.page_table_stride = step.page_table_stride;
  problem.keys = cache_.keys(layer);
  problem.values = cache_.values(layer);
  problem.out = scratch_.take<float>(num_tokens * config_.q_width());
  execution_.table->attention(problem, execution_.kernels);

  LinearInput mixed(problem.out, num_tokens, config_.q_width());
  apply_linear(weights.o, &mixed, execution_, out);
}

Status Decoder::run_feed_forward(int64_t layer, const float* x, int64_t num_tokens, float* out) {
  const auto& feed_forward = weights_.layers[layer].feed_forward;
  if (const auto* moe = std::get_if<moe::MoeLayer>(&feed_forward)) return run_moe(layer, *moe, x, num_tokens, out);
  LinearInput input(x, num_tokens, config_.hidden_size);
  run_mlp(std::get<moe::GatedMlp>(feed_forward), &input, execution_, out);
  return {};
}

Status Decoder::run_moe(int64_t layer, const moe::MoeLayer& moe, const float* x, int64_t num_tokens, float* out) {
  const int64_t top_k = moe.rule.top_k;
  const int64_t num_experts = moe.rule.num_experts;
  float* logits = scratch_.take<float>(num_tokens * num_experts);
  int32_t* ids = scratch_.take<int32_t>(num_tokens * top_k);
  float* weights = scratch_.take<float>(num_tokens * top_k);
  moe::route(moe, x, num_tokens, execution_, logits, ids, weights);
  QD_TRY_STATUS(moe::run_layer(moe, x, num_tokens, {ids, weights}, execution_, out));
  if (observer_ != nullptr) {
    observer_->router(layer, logits, ids, weights, num_tokens, num_experts, top_k);
    observer_->moe_block(layer, x, out, num_tokens, config_.hidden_size);
  }
  return {};
}

void Decoder::embed(std::span<const int32_t> ids, float* x) const {
  const int64_t width = config_.hidden_size;
  const layout::Bf16Lanes16 lanes{config_.vocab_size, width};
  for (size_t t = 0; t < ids.size(); ++t) {
    float* row = x + static_cast<int64_t>(t) * width;
    for (int64_t i = 0; i < width; ++i) {
      const uint16_t code = weights_.embedding.rows != nullptr ? weights_.embedding.rows[ids[t] * width + i]
                                                               : weights_.embedding.lanes16[lanes.offset(ids[t], i)];
      row[i] = numerics::bf16_to_f32(code);
    }
  }
}

void Decoder::norm(const float* x, const uint16_t* weight, int64_t num_rows, int64_t width, float* out) const {
  kernels::RmsNorm problem;
  problem.rounding = execution_.rounding;
  problem.num_rows = num_rows;
  problem.width = width;
  problem.row_stride = width;
  problem.eps = static_cast<float>(config_.rms_norm_eps);
  problem.x = x;
  problem.weight = weight;
  problem.out = out;
  execution_.table->rms_norm(problem, execution_.kernels);
}

void Decoder::norm_heads(int64_t num_tokens, float* q, float* k, const AttentionView& weights) const {
  if (config_.qk_norm == QkNorm::kPerHead) {
    norm(q, weights.q_norm, num_tokens * config_.num_heads, config_.head_dim, q);
    norm(k, weights.k_norm, num_tokens * config_.num_kv_heads, config_.head_dim, k);
  } else if (config_.qk_norm == QkNorm::kWholeProjection) {
    norm(q, weights.q_norm, num_tokens, config_.q_width(), q);
    norm(k, weights.k_norm, num_tokens, config_.kv_width(), k);
  }
}

void Decoder::clip(float* x, int64_t count) const {
  if (!config_.clip_qkv) return;
  const float bound =
      numerics::round_output(static_cast<float>(*config_.clip_qkv), execution_.rounding == kernels::Rounding::kBf16);
  for (int64_t i = 0; i < count; ++i) {
    // NaN stays: both comparisons are false.
    x[i] = x[i] > bound ? bound : x[i] < -bound ? -bound : x[i];
  }
}

void Decoder::rotate(const Step& step, int64_t num_heads, float* x) const {
  kernels::Rope problem;
  problem.rounding = execution_.rounding;
  problem.num_tokens = static_cast<int64_t>(step.ids.size());
  problem.num_heads = num_heads;
  problem.head_dim = config_.head_dim;
  problem.rotary_dim = config_.head_dim;
  problem.token_stride = num_heads * config_.head_dim;
  problem.cos = rope_.cos.data();
  problem.sin = rope_.sin.data();
  problem.position = step.positions.data();
  problem.x = x;
  execution_.table->rope(problem, execution_.kernels);
}

void Decoder::write_logits(std::span<const int32_t> rows, const float* x, std::span<float> logits) {
  if (rows.empty()) return;
  scratch_.reset();
  const int64_t width = config_.hidden_size;
  const auto num_rows = static_cast<int64_t>(rows.size());
  float* wanted = scratch_.take<float>(num_rows * width);
  for (int64_t r = 0; r < num_rows; ++r) std::copy_n(x + rows[r] * width, width, wanted + r * width);
  norm(wanted, weights_.final_norm, num_rows, width, wanted);
  if (observer_ != nullptr) observer_->final_norm(wanted, num_rows, width);
  LinearInput input(wanted, num_rows, width);
  const int64_t offsets[2] = {0, num_rows};
  apply_linear(weights_.lm_head, &input, {1, offsets, nullptr}, moe::OutputRounding::kNone, execution_, logits.data());
}

}  // namespace quadrille::model
