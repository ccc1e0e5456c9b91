// SPDX-License-Identifier: Apache-2.0
// The list of families and the pieces that several of them share.
#include "model/families.h"

#include <algorithm>

namespace quadrille::model {

std::span<const Family* const> all_families() {
  static const Family* const families[] = {&kQwen3MoeFamily, &kQwen2MoeFamily, &kMixtralFamily, &kOlmoeFamily};
  return families;
}

Status fill_softmax_router(const formats::HfConfig& raw, bool renormalise, ModelConfig* config) {
  QD_TRY(config->router.num_experts, raw.require_int(raw.num_experts, "num_experts"));
  QD_TRY(config->router.top_k, raw.require_int(raw.num_experts_per_tok, "num_experts_per_tok"));
  config->router.scoring = moe::Scoring::kSoftmaxBeforeTopK;
  config->router.renormalise = renormalise;
  return {};
}

Status fill_sparse_layers(const formats::HfConfig& raw, ModelConfig* config) {
  const int64_t step = raw.decoder_sparse_step.value_or(1);
  bool has_dense = false;
  for (int64_t l = 0; l < config->num_layers; ++l) {
    const auto& dense = raw.mlp_only_layers;
    const bool listed = std::find(dense.begin(), dense.end(), l) != dense.end();
    config->layers[l].is_moe = !listed && (l + 1) % step == 0;
    has_dense = has_dense || !config->layers[l].is_moe;
  }
  if (has_dense) {
    QD_TRY(config->dense_width, raw.require_int(raw.intermediate_size, "intermediate_size"));
  }
  return {};
}

Status fill_windows(const formats::HfConfig& raw, int64_t window, bool (*has_window)(const formats::HfConfig&, int64_t),
                    ModelConfig* config) {
  for (int64_t l = 0; l < config->num_layers; ++l) {
    bool windowed = window > 0 && has_window(raw, l);
    if (!raw.layer_types.empty()) {
      const std::string& type = raw.layer_types[l];
      if (type != "full_attention" && type != "sliding_attention") {
        return make_error(ErrorCode::kUnsupported,
                          "{}: 'layer_types': layer {} is '{}'; full_attention and sliding_attention run", raw.file, l,
                          type);
      }
      windowed = type == "sliding_attention";
      if (windowed && window <= 0) {
        return make_error(ErrorCode::kInvalidData,
                          "{}: 'layer_types': layer {} is 'sliding_attention', but no 'sliding_window' is in use",
                          raw.file, l);
      }
    }
    config->layers[l].window = windowed ? window : 0;
  }
  return {};
}

}  // namespace quadrille::model
