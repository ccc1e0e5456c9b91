// SPDX-License-Identifier: Apache-2.0
// Mixtral: block_sparse_moe with w1 (gate), w3 (up), w2 (down); softmax router, always renormalised.
#include "model/families.h"

namespace quadrille::model {
namespace {

Status fill(const formats::HfConfig& raw, ModelConfig* config) {
  QD_TRY(config->expert_width, raw.require_int(raw.intermediate_size, "intermediate_size"));
  QD_TRY_STATUS(fill_softmax_router(raw, true, config));
  config->names.router = "block_sparse_moe.gate";
  config->names.expert_gate = "block_sparse_moe.experts.{expert}.w1";
  config->names.expert_up = "block_sparse_moe.experts.{expert}.w3";
  config->names.expert_down = "block_sparse_moe.experts.{expert}.w2";
  return fill_windows(
      raw, raw.sliding_window.value_or(0), [](const formats::HfConfig&, int64_t) { return true; }, config);
}

}  // namespace

const Family kMixtralFamily = {"mixtral", "MixtralForCausalLM", 1e6, fill};

}  // namespace quadrille::model
