// SPDX-License-Identifier: Apache-2.0
// Qwen3-MoE: q and k norm per head, softmax router, renormalised where norm_topk_prob says so, no shared expert.
#include "model/families.h"

namespace quadrille::model {
namespace {

Status fill(const formats::HfConfig& raw, ModelConfig* config) {
  config->qk_norm = QkNorm::kPerHead;
  config->qkv_bias = config->o_bias = raw.attention_bias.value_or(false);
  QD_TRY(config->expert_width, raw.require_int(raw.moe_intermediate_size, "moe_intermediate_size"));
  QD_TRY_STATUS(fill_softmax_router(raw, raw.norm_topk_prob.value_or(false), config));
  QD_TRY_STATUS(fill_sparse_layers(raw, config));
  // Without use_sliding_window the number in sliding_window means nothing.
  const int64_t window = raw.use_sliding_window.value_or(false) ? raw.sliding_window.value_or(0) : 0;
  return fill_windows(
      raw, window, [](const formats::HfConfig&, int64_t) { return true; }, config);
}

}  // namespace

const Family kQwen3MoeFamily = {"qwen3_moe", "Qwen3MoeForCausalLM", 10000, fill};

}  // namespace quadrille::model
