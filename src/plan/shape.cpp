// SPDX-License-Identifier: Apache-2.0
// config.json to dimensions. The families that run come as they are; the others are read here, sizes alone.
#include "plan/shape.h"

#include <algorithm>

#include "formats/compressed_tensors.h"

namespace quadrille::plan {
namespace {

using formats::HfConfig;
using formats::QuantizationConfig;
using model::ModelConfig;

Result<int64_t> raw_int(const HfConfig& raw, const char* key) {
  const auto at = raw.raw.find(key);
  if (at == raw.raw.end() || !at->is_number_integer()) {
    return make_error(ErrorCode::kInvalidData, "{}: '{}': expected a whole number", raw.file, key);
  }
  const auto value = at->get<int64_t>();
  if (value < 1 || value > (1 << 24)) {
    return make_error(ErrorCode::kInvalidData, "{}: '{}': expected 1 to {}, found {}", raw.file, key, 1 << 24, value);
  }
  return value;
}

Status fill_experts(const HfConfig& raw, ModelConfig* config) {
  QD_TRY(config->router.num_experts, raw.require_int(raw.num_experts, "number of experts"));
  QD_TRY(config->router.top_k, raw.require_int(raw.num_experts_per_tok, "num_experts_per_tok"));
  return {};
}

// DeepSeek and GLM: the first layers dense, shared experts as wide as that many routed ones.
Status fill_dense_first(const HfConfig& raw, ModelConfig* config) {
  QD_TRY_STATUS(fill_experts(raw, config));
  QD_TRY(config->expert_width, raw.require_int(raw.moe_intermediate_size, "moe_intermediate_size"));
  config->shared_width = raw.n_shared_experts.value_or(0) * config->expert_width;
  const int64_t dense = std::min(raw.first_k_dense_replace.value_or(0), config->num_layers);
  for (int64_t l = 0; l < dense; ++l) config->layers[static_cast<size_t>(l)].is_moe = false;
  if (dense > 0) {
    QD_TRY(config->dense_width, raw.require_int(raw.intermediate_size, "intermediate_size"));
  }
  return {};
}

Status fill_deepseek(const HfConfig& raw, PlanShape* shape) {
  ModelConfig& config = shape->config;
  LatentAttention latent;
  const auto q_rank = raw.raw.find("q_lora_rank");
  if (q_rank != raw.raw.end() && !q_rank->is_null()) {
    QD_TRY(latent.q_rank, raw_int(raw, "q_lora_rank"));
  }
  QD_TRY(latent.kv_rank, raw_int(raw, "kv_lora_rank"));
  QD_TRY(latent.nope_dim, raw_int(raw, "qk_nope_head_dim"));
  QD_TRY(latent.rope_dim, raw_int(raw, "qk_rope_head_dim"));
  QD_TRY(latent.value_dim, raw_int(raw, "v_head_dim"));
  config.num_kv_heads = config.num_heads;
  config.head_dim = latent.value_dim;
  shape->latent = latent;
  shape->has_router_bias = raw.topk_method.value_or("") == "noaux_tc";
  return fill_dense_first(raw, &config);
}

Status fill_gpt_oss(const HfConfig& raw, PlanShape* shape) {
  ModelConfig& config = shape->config;
  QD_TRY(config.head_dim, raw.require_head_dim());
  QD_TRY_STATUS(fill_experts(raw, &config));
  QD_TRY(config.expert_width, raw.require_int(raw.intermediate_size, "intermediate_size"));
  config.qkv_bias = config.o_bias = true;
  shape->has_sinks = shape->has_router_bias = shape->has_expert_biases = true;
  const int64_t window = raw.sliding_window.value_or(0);
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const bool windowed = raw.layer_types.empty() ? l % 2 == 0 : raw.layer_types[l] == "sliding_attention";
    config.layers[l].window = windowed ? window : 0;
  }
  return {};
}

Status fill_glm(const HfConfig& raw, PlanShape* shape) {
  ModelConfig& config = shape->config;
  QD_TRY(config.head_dim, raw.require_head_dim());
  config.qkv_bias = raw.attention_bias.value_or(false);
  const auto norm = raw.raw.find("use_qk_norm");
  if (norm != raw.raw.end() && norm->is_boolean() && norm->get<bool>()) config.qk_norm = model::QkNorm::kPerHead;
  shape->has_router_bias = true;
  return fill_dense_first(raw, &config);
}

struct PlannedFamily {
  const char* architecture;
  int64_t group_size;  // what its widths allow
  Status (*fill)(const HfConfig& raw, PlanShape* shape);
};
// MXFP4 checkpoints of gpt-oss have blocks of 32, and 2,880 is no multiple of 128.
constexpr PlannedFamily kPlannedFamilies[] = {{"DeepseekV3ForCausalLM", 128, fill_deepseek},
                                              {"DeepseekV2ForCausalLM", 128, fill_deepseek},
                                              {"GptOssForCausalLM", 32, fill_gpt_oss},
                                              {"Glm4MoeForCausalLM", 128, fill_glm}};

const PlannedFamily* find_planned(const HfConfig& raw) {
  for (const PlannedFamily& family : kPlannedFamilies) {
    const auto& names = raw.architectures;
    if (std::find(names.begin(), names.end(), family.architecture) != names.end()) return &family;
  }
  return nullptr;
}

Status fill_planned(const HfConfig& raw, const PlannedFamily& family, PlanShape* shape) {
  ModelConfig& config = shape->config;
  config.family = raw.model_type;
  config.architecture = family.architecture;
  config.hidden_size = raw.hidden_size;
  config.num_layers = raw.num_hidden_layers;
  config.num_heads = raw.num_attention_heads;
  config.num_kv_heads = raw.num_key_value_heads;
  config.vocab_size = raw.vocab_size;
  config.max_positions = raw.max_position_embeddings;
  config.rms_norm_eps = raw.rms_norm_eps;
  config.tie_word_embeddings = raw.tie_word_embeddings.value_or(false);
  config.layers.resize(static_cast<size_t>(config.num_layers));
  QD_TRY_STATUS(family.fill(raw, shape));
  return model::check_model_config(config, raw.file);
}

Result<LinearForm> decide(const QuantizationConfig& quantization, const std::string& path) {
  QD_TRY(const formats::QuantizationDecision decision, quantization.decide(path));
  return LinearForm{decision.kind != formats::QuantizationKind::kUnquantized, decision.group_size};
}

// What the checkpoint's quantisation config says about each module.
Status decided_forms(const QuantizationConfig& quantization, PlanShape* shape) {
  const ModelConfig& config = shape->config;
  const model::TensorNames& names = config.names;
  struct Place {
    LinearForm LayerForms::*form;
    const std::string* name;
  };
  const Place places[] = {
      {&LayerForms::q, &names.q},
      {&LayerForms::k, &names.k},
      {&LayerForms::v, &names.v},
      {&LayerForms::o, &names.o},
      {&LayerForms::experts_up, &names.expert_gate},
      {&LayerForms::experts_down, &names.expert_down},
      {&LayerForms::shared_up, &names.shared_gate_proj},
      {&LayerForms::shared_down, &names.shared_down},
      {&LayerForms::dense_up, &names.dense_gate},
      {&LayerForms::dense_down, &names.dense_down},
  };
  for (int64_t l = 0; l < config.num_layers; ++l) {
    for (const Place& place : places) {
      QD_TRY(shape->forms[static_cast<size_t>(l)].*place.form,
             decide(quantization, names.layer_path(l, *place.name, 0)));
    }
  }
  return {};
}

Status check_groups(const PlanShape& shape) {
  for (const PlanMatrix& m : plan_matrices(shape)) {
    if (!m.form.is_w4) continue;
    const int64_t group = m.form.group_size == 0 ? 8 : m.form.group_size;
    if (m.k % group == 0 && m.n % 8 == 0) continue;
    std::string legal = "0 (one scale a channel)";
    for (const int64_t g : {32, 64, 128}) {
      if (m.k % g == 0) legal += fmt::format(", {}", g);
    }
    return make_error(ErrorCode::kUnsupported,
                      "{}: a W4A8 matrix of {} [{}, {}] with groups of {}: the group must divide {}, and {} must be a "
                      "multiple of 8; legal groups: {}",
                      shape.name, plan_part_name(m.part), m.n, m.k, m.form.group_size, m.k, m.n, legal);
  }
  return {};
}

}  // namespace

Result<PlanShape> make_plan_shape(const std::string& name, const HfConfig& raw, const ShapeOptions& options) {
  PlanShape shape;
  shape.name = name;
  int64_t group = 128;
  const PlannedFamily* planned = find_planned(raw);
  if (planned != nullptr) {
    shape.why_not_run = "not run by this engine yet";
    QD_TRY_STATUS(fill_planned(raw, *planned, &shape));
    group = planned->group_size;
  } else {
    auto config = model::make_model_config(raw);
    if (!config) {
      std::string names;
      for (const PlannedFamily& family : kPlannedFamilies) names += fmt::format(", {}", family.architecture);
      return make_error(config.error().code, "{} (planned without running: {})", config.error().message,
                        names.substr(2));
    }
    shape.config = std::move(*config);
  }
  const LinearForm form{true, options.group_size.value_or(group)};
  LayerForms forms;
  for (LinearForm* each : {&forms.q, &forms.k, &forms.v, &forms.o, &forms.experts_up, &forms.experts_down,
                           &forms.shared_up, &forms.shared_down, &forms.dense_up, &forms.dense_down}) {
    *each = form;
  }
  shape.forms.assign(shape.config.layers.size(), forms);
  shape.weights =
      fmt::format("W4A8, {}; router, norms, embedding and head bf16",
                  form.group_size == 0 ? "one scale a channel" : fmt::format("groups of {}", form.group_size));
  if (planned == nullptr && raw.quantization_config && !options.group_size) {
    QD_TRY(const QuantizationConfig quantization, QuantizationConfig::parse(*raw.quantization_config, raw.file));
    QD_TRY_STATUS(decided_forms(quantization, &shape));
    shape.weights = fmt::format("as config.json says ({})", quantization.format());
  }
  QD_TRY_STATUS(check_groups(shape));
  return shape;
}

}  // namespace quadrille::plan
