// SPDX-License-Identifier: Apache-2.0
// The steps of a decoder block in their order; each is a function of the kernel table.
#include "model/decoder.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "layout/bf16_lanes16.h"
#include "moe/dispatch.h"
#include "moe/row_parallel.h"
#include "numerics/bf16.h"
#include "numerics/elementwise.h"
#include "parallel/communicator.h"

namespace quadrille::model {

using moe::LinearInput;

namespace {

// Hands the stages of one module of one layer to the observer of the step.
class ModuleStages final : public moe::LayerObserver {
 public:
  ModuleStages(StepObserver* observer, int64_t layer, Module module)
      : observer_(observer != nullptr && observer->wants_stages() ? observer : nullptr),
        layer_(layer),
        module_(module) {}
  // Null where nobody looks.
  moe::LayerObserver* get() { return observer_ == nullptr ? nullptr : this; }
  void stage(const moe::Stage& stage) override { observer_->stage(layer_, module_, stage); }
  void shared_stage(const moe::Stage& stage) override { observer_->stage(layer_, Module::kShared, stage); }
  void values(const char* name, const float* x, int64_t rows, int64_t width) {
    if (observer_ != nullptr) stage({name, moe::StageType::kF32, {rows, width}, x});
  }

 private:
  StepObserver* observer_;
  int64_t layer_;
  Module module_;
};

}  // namespace

Status Decoder::run(const Step& step, std::span<float> logits, const std::atomic<bool>* cancel) {
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  if (num_tokens == 0) return {};
  stream_.resize(num_tokens * config_.hidden_size);
  float* x = stream_.data();
  if (execution_.is_split() || execution_.is_spread()) {
    cancel = nullptr;
    const bool is_decode = step.logit_rows.size() == step.ids.size();
    parallel::Communicator* any = execution_.is_split() ? execution_.ranks : execution_.expert_ranks;
    any->set_phase(is_decode ? parallel::Phase::kDecode : parallel::Phase::kPrefill);
  }
  QD_TRY_STATUS(embed(step.ids, x));
  show_update(-1, Module::kEmbedding, x, num_tokens);
  for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return make_error(ErrorCode::kCancelled, "step stopped before layer {} of {}", layer, config_.num_layers);
    }
    QD_TRY_STATUS(run_block(layer, step, x));
    if (observer_ != nullptr) observer_->hidden(layer, x, num_tokens, config_.hidden_size);
  }
  return write_logits(step.logit_rows, x, logits);
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
  QD_TRY_STATUS(run_attention(layer, step, normed, update));
  show_update(layer, Module::kAttention, update, num_tokens);
  execution_.table->add_residual({execution_.rounding, count, x, update}, execution_.kernels);

  norm(x, weights.post_attention_norm, num_tokens, config_.hidden_size, normed);
  QD_TRY_STATUS(run_feed_forward(layer, normed, num_tokens, update));
  show_update(layer, Module::kFeedForward, update, num_tokens);
  execution_.table->add_residual({execution_.rounding, count, x, update}, execution_.kernels);
  return {};
}

// The query heads of this rank and the KV heads that they read; o_proj sums over the ranks.
Status Decoder::run_attention(int64_t layer, const Step& step, const float* normed, float* out) {
  const AttentionView& weights = weights_.layers[layer].attention;
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  float* q = scratch_.take<float>(num_tokens * q_width());
  float* k = scratch_.take<float>(num_tokens * kv_width());
  float* v = scratch_.take<float>(num_tokens * kv_width());
  LinearInput input(normed, num_tokens, config_.hidden_size);
  apply_linear(weights.q, &input, execution_, q);
  apply_linear(weights.k, &input, execution_, k);
  apply_linear(weights.v, &input, execution_, v);
  ModuleStages stages(observer_, layer, Module::kAttention);
  stages.values("q", q, num_tokens, q_width());
  stages.values("k", k, num_tokens, kv_width());
  stages.values("v", v, num_tokens, kv_width());
  QD_TRY_STATUS(norm_heads(num_tokens, q, k, weights));
  clip(q, num_tokens * q_width());
  clip(k, num_tokens * kv_width());
  clip(v, num_tokens * kv_width());
  rotate(step, part_.heads.heads.size(), q);
  rotate(step, part_.heads.kv_heads.size(), k);
  cache_.write(layer, step, k, v, execution_.kernels.pool);
  const float* mixed = attend(layer, step, q);
  const int64_t offset =
      part_.all.empty() ? 0 : part_.all[execution_.ranks->rank()].layers[layer].attention.o.k_offset();
  return apply_row_parallel(weights.o, {mixed, num_tokens, q_width(), offset}, execution_, out, stages.get());
}

void Decoder::show_update(int64_t layer, Module module, float* y, int64_t num_tokens) const {
  if (observer_ != nullptr) observer_->update(layer, module, y, num_tokens, config_.hidden_size);
}

// The attention of the rank's query heads over the cache: [num_tokens, heads, head_dim]. The kernels take the same
// number of query heads for every KV head: where a rank has a part of the heads of one, zeros stand for the others.
const float* Decoder::attend(int64_t layer, const Step& step, const float* q) {
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  const auto& [heads, kv_heads, per_kv] = part_.heads;
  const bool is_even = kv_heads.size() == 1 || (heads.begin % per_kv == 0 && heads.end % per_kv == 0);
  const int64_t num_heads = is_even ? heads.size() : kv_heads.size() * per_kv;
  const int64_t own = q_width();
  const int64_t width = num_heads * config_.head_dim;
  const int64_t first = is_even ? 0 : (heads.begin - kv_heads.begin * per_kv) * config_.head_dim;
  if (!is_even) {
    float* padded = scratch_.take<float>(num_tokens * width);
    std::fill_n(padded, num_tokens * width, 0.0f);
    for (int64_t t = 0; t < num_tokens; ++t) std::copy_n(q + t * own, own, padded + t * width + first);
    q = padded;
  }
  kernels::Attention problem;
  problem.rounding = execution_.rounding;
  problem.kv_type = cache_.type();
  problem.num_tokens = num_tokens;
  problem.num_heads = num_heads;
  problem.num_kv_heads = kv_heads.size();
  problem.head_dim = config_.head_dim;
  problem.window = config_.layers[layer].window;
  problem.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config_.head_dim)));
  problem.q_stride = width;
  problem.q = q;
  problem.position = step.positions.data();
  problem.sequence = step.sequences.data();
  problem.page_table = step.page_table.data();
  problem.page_table_stride = step.page_table_stride;
  problem.keys = cache_.keys(layer);
  problem.values = cache_.values(layer);
  problem.out = scratch_.take<float>(num_tokens * width);
  execution_.table->attention(problem, execution_.kernels);
  if (is_even) return problem.out;
  float* mixed = scratch_.take<float>(num_tokens * own);
  for (int64_t t = 0; t < num_tokens; ++t) std::copy_n(problem.out + t * width + first, own, mixed + t * own);
  return mixed;
}

Status Decoder::run_feed_forward(int64_t layer, const float* x, int64_t num_tokens, float* out) {
  const auto& feed_forward = weights_.layers[layer].feed_forward;
  if (const auto* moe = std::get_if<moe::MoeLayer>(&feed_forward)) return run_moe(layer, *moe, x, num_tokens, out);
  LinearInput input(x, num_tokens, config_.hidden_size);
  ModuleStages stages(observer_, layer, Module::kMlp);
  return run_mlp(std::get<moe::GatedMlp>(feed_forward), &input, execution_, out, stages.get());
}

Status Decoder::run_moe(int64_t layer, const moe::MoeLayer& moe, const float* x, int64_t num_tokens, float* out) {
  const int64_t top_k = moe.rule.top_k;
  const int64_t num_experts = moe.rule.num_experts;
  float* logits = scratch_.take<float>(num_tokens * num_experts);
  int32_t* ids = scratch_.take<int32_t>(num_tokens * top_k);
  float* weights = scratch_.take<float>(num_tokens * top_k);
  moe::route(moe, x, num_tokens, execution_, logits, ids, weights);
  if (observer_ != nullptr) observer_->router(layer, logits, ids, weights, num_tokens, num_experts, top_k);
  if (moe.placement != nullptr && execution_.is_spread()) {
    QD_TRY_STATUS(run_own_tokens(moe, x, num_tokens, {ids, weights}, out));
  } else {
    ModuleStages stages(observer_, layer, Module::kExperts);
    QD_TRY_STATUS(moe::run_layer(moe, x, num_tokens, {ids, weights}, execution_, out, stages.get()));
  }
  if (observer_ != nullptr) observer_->moe_block(layer, x, out, num_tokens, config_.hidden_size);
  return {};
}

// All expert ranks have the same tokens: each computes a range of them, then all have all outputs.
Status Decoder::run_own_tokens(const moe::MoeLayer& moe, const float* x, int64_t num_tokens, const moe::Routes& routes,
                               float* out) {
  const int64_t width = config_.hidden_size, top_k = moe.rule.top_k;
  const parallel::Communicator& ranks = *execution_.expert_ranks;
  const moe::TokenRange own = moe::token_range(num_tokens, ranks.rank(), ranks.size());
  float* mine = scratch_.take<float>(own.size() * width);
  QD_TRY_STATUS(moe::run_layer(moe, x + own.begin * width, own.size(),
                               {routes.ids + own.begin * top_k, routes.weights + own.begin * top_k}, execution_, mine));
  const bool rounds = execution_.rounding == kernels::Rounding::kBf16;
  return moe::gather_tokens(mine, num_tokens, width, rounds ? moe::RowForm::kBf16 : moe::RowForm::kF32, execution_,
                            out);
}

// Each row comes from the rank that holds it; the others give -0, which changes nothing in a sum, not even a zero's
// sign.
Status Decoder::embed(std::span<const int32_t> ids, float* x) const {
  const int64_t width = config_.hidden_size;
  const layout::Range held = part_.vocabulary;
  const layout::Bf16Lanes16 lanes{held.size(), width};
  for (size_t t = 0; t < ids.size(); ++t) {
    float* row = x + static_cast<int64_t>(t) * width;
    const int64_t id = ids[t] - held.begin;
    if (id < 0 || id >= held.size()) {
      std::fill_n(row, width, -0.0f);
      continue;
    }
    for (int64_t i = 0; i < width; ++i) {
      const uint16_t code = weights_.embedding.rows != nullptr ? weights_.embedding.rows[id * width + i]
                                                               : weights_.embedding.lanes16[lanes.offset(id, i)];
      row[i] = numerics::bf16_to_f32(code);
    }
  }
  if (!execution_.is_split()) return {};
  return execution_.ranks->all_reduce_sum({x, ids.size() * static_cast<size_t>(width)});
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

Status Decoder::norm_heads(int64_t num_tokens, float* q, float* k, const AttentionView& weights) {
  if (config_.qk_norm == QkNorm::kPerHead) {
    norm(q, weights.q_norm, num_tokens * part_.heads.heads.size(), config_.head_dim, q);
    norm(k, weights.k_norm, num_tokens * part_.heads.kv_heads.size(), config_.head_dim, k);
  } else if (config_.qk_norm == QkNorm::kWholeProjection && !execution_.is_split()) {
    norm(q, weights.q_norm, num_tokens, config_.q_width(), q);
    norm(k, weights.k_norm, num_tokens, config_.kv_width(), k);
  } else if (config_.qk_norm == QkNorm::kWholeProjection) {
    const auto q_rows = [](const layout::ModelShard& s) { return s.layers[0].attention.q_rows; };
    const auto kv_rows = [](const layout::ModelShard& s) { return s.layers[0].attention.kv_rows; };
    QD_TRY_STATUS(norm_over_ranks(q, num_tokens, weights.q_norm, config_.q_width(), q_rows));
    QD_TRY_STATUS(norm_over_ranks(k, num_tokens, weights.k_norm, config_.kv_width(), kv_rows));
  }
  return {};
}

// The norm of whole rows [num_rows, width], of which x has this rank's columns: every rank norms all of it and keeps
// its own, so that the bits are those of one rank.
Status Decoder::norm_over_ranks(float* x, int64_t num_rows, const uint16_t* weight, int64_t width, RangeOf range_of) {
  float* whole = scratch_.take<float>(num_rows * width);
  QD_TRY_STATUS(gather_columns(x, num_rows, width, range_of, whole));
  norm(whole, weight, num_rows, width, whole);
  const layout::Range own = range_of(part_.all[execution_.ranks->rank()]);
  for (int64_t r = 0; r < num_rows; ++r) {
    std::copy_n(whole + r * width + own.begin, own.size(), x + r * own.size());
  }
  return {};
}

// all [num_rows, width] = the columns of every rank in their places; columns that several ranks hold are equal.
Status Decoder::gather_columns(const float* mine, int64_t num_rows, int64_t width, RangeOf range_of, float* all) {
  std::vector<size_t> bytes;
  size_t total = 0;
  for (const layout::ModelShard& shard : part_.all) {
    bytes.push_back(static_cast<size_t>(num_rows * range_of(shard).size()) * sizeof(float));
    total += bytes.back();
  }
  float* parts = scratch_.take<float>(static_cast<int64_t>(total / sizeof(float)));
  const std::span<const float> own(mine, bytes[static_cast<size_t>(execution_.ranks->rank())] / sizeof(float));
  QD_TRY_STATUS(execution_.ranks->all_gather_v(std::as_bytes(own), bytes,
                                               std::as_writable_bytes(std::span(parts, total / sizeof(float)))));
  for (const layout::ModelShard& shard : part_.all) {
    const layout::Range range = range_of(shard);
    for (int64_t r = 0; r < num_rows; ++r) {
      std::copy_n(parts + r * range.size(), range.size(), all + r * width + range.begin);
    }
    parts += num_rows * range.size();
  }
  return {};
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

Status Decoder::write_logits(std::span<const int32_t> rows, const float* x, std::span<float> logits) {
  if (rows.empty()) return {};
  scratch_.reset();
  const int64_t width = config_.hidden_size;
  const auto num_rows = static_cast<int64_t>(rows.size());
  float* wanted = scratch_.take<float>(num_rows * width);
  for (int64_t r = 0; r < num_rows; ++r) std::copy_n(x + rows[r] * width, width, wanted + r * width);
  norm(wanted, weights_.final_norm, num_rows, width, wanted);
  if (observer_ != nullptr) observer_->final_norm(wanted, num_rows, width);
  LinearInput input(wanted, num_rows, width);
  const int64_t offsets[2] = {0, num_rows};
  const bool is_split = execution_.is_split();
  float* out = is_split ? scratch_.take<float>(num_rows * part_.vocabulary.size()) : logits.data();
  apply_linear(weights_.lm_head, &input, {1, offsets, nullptr}, moe::OutputRounding::kNone, execution_, out);
  if (!is_split) return {};
  const auto vocabulary = [](const layout::ModelShard& s) { return s.vocabulary; };
  return gather_columns(out, num_rows, config_.vocab_size, vocabulary, logits.data());
}

}  // namespace quadrille::model
