// SPDX-License-Identifier: Apache-2.0
// OLMoE: q and k norm over the whole projection, optional clip_qkv, softmax router; the expert width stands in
// intermediate_size.
#include "model/families.h"

namespace quadrille::model {
namespace {

Status fill(const formats::HfConfig& raw, ModelConfig* config) {
  config->qk_norm = QkNorm::kWholeProjection;
  config->qkv_bias = config->o_bias = raw.attention_bias.value_or(false);
  config->clip_qkv = raw.clip_qkv;
  QD_TRY(config->expert_width, raw.require_int(raw.intermediate_size, "intermediate_size"));
  return fill_softmax_router(raw, raw.norm_topk_prob.value_or(false), config);
}

}  // namespace

const Family kOlmoeFamily = {"olmoe", "OlmoeForCausalLM", 10000, fill};

}  // namespace quadrille::model
