// SPDX-License-Identifier: Apache-2.0
// One step through the decoder: embedding, blocks, last norm, logits. Views over prepared weights; model.cpp owns them.
// The story of a block is decoder.cpp's run_block().
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "core/arena.h"
#include "core/result.h"
#include "layout/shard_plan.h"
#include "model/config.h"
#include "model/forward.h"
#include "model/kv_cache.h"
#include "model/observer.h"
#include "model/rope.h"
#include "moe/layer.h"

namespace quadrille::model {

// Rows of the embedding that the rank holds: row-major, or inside the prepared lm_head where both are tied.
struct EmbeddingView {
  const uint16_t* rows = nullptr;     // [vocab, hidden] bf16
  const uint16_t* lanes16 = nullptr;  // [vp/16, hidden, 16] bf16 (layout/bf16_lanes16.h)
};

// What of the model this rank has; one rank: everything.
struct RankPart {
  layout::HeadShard heads;
  layout::Range vocabulary;
  int64_t most_kv_heads = 0;            // of any rank
  std::vector<layout::ModelShard> all;  // in rank order; empty: one rank
};

struct AttentionView {
  const uint16_t* input_norm = nullptr;  // [hidden] bf16
  moe::Linear q, k, v, o;
  const uint16_t* q_norm = nullptr;  // [head_dim] or [q_width] bf16, by ModelConfig::qk_norm
  const uint16_t* k_norm = nullptr;  // [head_dim] or [kv_width]
};

struct LayerView {
  AttentionView attention;
  const uint16_t* post_attention_norm = nullptr;  // [hidden] bf16
  std::variant<moe::GatedMlp, moe::MoeLayer> feed_forward;
};

struct DecoderView {
  EmbeddingView embedding;
  std::vector<LayerView> layers;
  const uint16_t* final_norm = nullptr;  // [hidden] bf16
  moe::Linear lm_head;
};

class Decoder {
 public:
  // Everything given must outlive the decoder.
  Decoder(const ModelConfig& config, const DecoderView& weights, const RopeTables& rope, KvCache* cache,
          const moe::Execution& execution, RankPart part)
      : config_(config), weights_(weights), rope_(rope), cache_(*cache), execution_(execution), part_(std::move(part)) {
    execution_.kernels.scratch = &scratch_;
  }

  // The rules of forward.h: lengths, ids, positions, pages. kInvalidArgument names what breaks them.
  Status check_step(const Step& step, std::span<float> logits, int64_t max_positions) const;
  // A checked step. Logits stay fp32 in both roundings: nothing rounds them to bf16. With ranks every rank runs the
  // same step, `cancel` is not looked at, and errors are also those of the communicator.
  Status run(const Step& step, std::span<float> logits, const std::atomic<bool>* cancel);
  // The feed-forward of one layer: x [num_tokens, hidden] -> out [num_tokens, hidden], without norm and residual.
  Status run_feed_forward(int64_t layer, const float* x, int64_t num_tokens, float* out);

  void set_observer(StepObserver* observer) { observer_ = observer; }
  const std::vector<layout::ModelShard>& shards() const { return part_.all; }
  Arena& scratch() { return scratch_; }
  uint64_t scratch_bytes() const { return scratch_.capacity_bytes() + stream_.capacity() * sizeof(float); }

 private:
  Status run_block(int64_t layer, const Step& step, float* x);
  Status run_attention(int64_t layer, const Step& step, const float* normed, float* out);
  const float* attend(int64_t layer, const Step& step, const float* q);
  Status run_moe(int64_t layer, const moe::MoeLayer& moe, const float* x, int64_t num_tokens, float* out);
  Status run_own_tokens(const moe::MoeLayer& moe, const float* x, int64_t num_tokens, const moe::Routes& routes,
                        float* out);
  Status embed(std::span<const int32_t> ids, float* x) const;
  void show_update(int64_t layer, Module module, float* y, int64_t num_tokens) const;
  void norm(const float* x, const uint16_t* weight, int64_t num_rows, int64_t width, float* out) const;
  Status norm_heads(int64_t num_tokens, float* q, float* k, const AttentionView& weights);
  using RangeOf = layout::Range (*)(const layout::ModelShard& shard);
  Status norm_over_ranks(float* x, int64_t num_rows, const uint16_t* weight, int64_t width, RangeOf range_of);
  Status gather_columns(const float* mine, int64_t num_rows, int64_t width, RangeOf range_of, float* all);
  void clip(float* x, int64_t count) const;
  void rotate(const Step& step, int64_t num_heads, float* x) const;
  Status write_logits(std::span<const int32_t> rows, const float* x, std::span<float> logits);
  int64_t q_width() const { return part_.heads.heads.size() * config_.head_dim; }
  int64_t kv_width() const { return part_.heads.kv_heads.size() * config_.head_dim; }

  const ModelConfig& config_;
  const DecoderView& weights_;
  const RopeTables& rope_;
  KvCache& cache_;
  moe::Execution execution_;
  RankPart part_;
  StepObserver* observer_ = nullptr;
  Arena scratch_;              // of one block; reset between blocks
  std::vector<float> stream_;  // residual stream [num_tokens, hidden]
};

}  // namespace quadrille::model
