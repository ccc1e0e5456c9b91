// SPDX-License-Identifier: Apache-2.0
// Qwen2-MoE and Qwen1.5-MoE: biases on q, k, v; softmax router; a shared expert behind a sigmoid gate in every MoE
// layer.
#include "model/families.h"

namespace quadrille::model {
namespace {

// Where a window is in use and the file lists no layer types: every second layer, up to max_window_layers.
bool has_window(const formats::HfConfig& raw, int64_t layer) {
  constexpr int64_t kDefaultMaxWindowLayers = 28;
  return layer % 2 == 0 && layer < raw.max_window_layers.value_or(kDefaultMaxWindowLayers);
}

Status fill(const formats::HfConfig& raw, ModelConfig* config) {
  config->qkv_bias = raw.qkv_bias.value_or(true);
  QD_TRY(config->expert_width, raw.require_int(raw.moe_intermediate_size, "moe_intermediate_size"));
  QD_TRY(config->shared_width, raw.require_int(raw.shared_expert_intermediate_size, "shared_expert_intermediate_size"));
  config->shared_has_gate = config->shared_width > 0;
  QD_TRY_STATUS(fill_softmax_router(raw, raw.norm_topk_prob.value_or(false), config));
  QD_TRY_STATUS(fill_sparse_layers(raw, config));
  const int64_t window = raw.use_sliding_window.value_or(false) ? raw.sliding_window.value_or(0) : 0;
  return fill_windows(raw, window, has_window, config);
}

}  // namespace

const Family kQwen2MoeFamily = {"qwen2_moe", "Qwen2MoeForCausalLM", 10000, fill};

}  // namespace quadrille::model
