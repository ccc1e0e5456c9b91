// SPDX-License-Identifier: Apache-2.0
// Shapes are config.json texts, so that they take the way of every other model through its family.
#include "plan/known_shapes.h"

#include <algorithm>

#include "formats/hf_config.h"
#include "formats/json.h"

namespace quadrille::plan {
namespace {

struct NamedShape {
  const char* name;
  const char* config;
  bool runs = true;  // false: an architecture that is planned for, not run
};

constexpr NamedShape kShapes[] = {
    {"qwen3-30b-a3b", R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
      "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
      "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "hidden_act": "silu",
      "rope_theta": 1000000.0, "tie_word_embeddings": false, "intermediate_size": 6144, "moe_intermediate_size": 768,
      "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1,
      "mlp_only_layers": [], "attention_bias": false, "eos_token_id": 151645})"},
    {"mixtral-8x7b", R"({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096,
      "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
      "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1000000.0,
      "tie_word_embeddings": false, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2,
      "eos_token_id": 2})"},
    {"olmoe-1b-7b", R"({"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 2048,
      "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 50304,
      "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
      "tie_word_embeddings": false, "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8,
      "norm_topk_prob": false, "attention_bias": false, "eos_token_id": 50279})"},
    {"qwen3-235b-a22b", R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 4096,
      "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
      "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "hidden_act": "silu",
      "rope_theta": 1000000.0, "tie_word_embeddings": false, "intermediate_size": 12288, "moe_intermediate_size": 1536,
      "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1,
      "mlp_only_layers": [], "attention_bias": false, "eos_token_id": 151645})"},
    {"deepseek-v3", R"({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
      "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
      "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
      "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 10000.0,
      "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
      "tie_word_embeddings": false, "intermediate_size": 18432, "moe_intermediate_size": 2048,
      "first_k_dense_replace": 3, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
      "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true,
      "routed_scaling_factor": 2.5, "attention_bias": false, "eos_token_id": 1})",
     false},
    {"gpt-oss-120b", R"({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880,
      "num_hidden_layers": 36, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
      "vocab_size": 201088, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu",
      "rope_theta": 150000, "rope_scaling": {"rope_type": "yarn", "factor": 32, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 4096, "truncate": false},
      "tie_word_embeddings": false, "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4,
      "sliding_window": 128, "attention_bias": true, "eos_token_id": 200002})",
     false},
};

const NamedShape* find_shape(const std::string& name) {
  for (const NamedShape& shape : kShapes) {
    if (shape.name == name) return &shape;
  }
  return nullptr;
}

}  // namespace

std::vector<std::string> bench_shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) {
    if (shape.runs) names.emplace_back(shape.name);
  }
  return names;
}

std::vector<std::string> named_shapes() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

void set_size(int64_t layers, int64_t vocabulary, formats::Json* config) {
  if (layers > 0) (*config)["num_hidden_layers"] = layers;
  if (vocabulary == 0) return;
  (*config)["vocab_size"] = vocabulary;
  (*config)["eos_token_id"] = vocabulary - 1;
}

Result<formats::Json> shape_json(const std::string& name) {
  const NamedShape* shape = find_shape(name);
  if (shape == nullptr) return make_error(ErrorCode::kInvalidArgument, "no shape is named '{}'", name);
  return formats::parse_json(shape->config, name);
}

Result<formats::HfConfig> named_shape(const std::string& name) {
  QD_TRY(const formats::Json json, shape_json(name));
  return formats::parse_hf_config(json, name);
}

Result<model::ModelConfig> bench_shape(const std::string& name, int64_t layers, int64_t vocabulary) {
  QD_TRY(formats::Json json, shape_json(name));
  set_size(layers, vocabulary, &json);
  QD_TRY(const formats::HfConfig hf, formats::parse_hf_config(json, name));
  return model::make_model_config(hf);
}

double prefill_flops(const model::ModelConfig& config, int64_t tokens) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto t = static_cast<double>(tokens);
  double weights = 0;  // multiply-adds a token in all layers
  for (const model::LayerConfig& layer : config.layers) {
    weights += hidden * static_cast<double>(2 * config.q_width() + 2 * config.kv_width());
    if (!layer.is_moe) {
      weights += 3 * hidden * static_cast<double>(config.dense_width);
      continue;
    }
    weights += hidden * static_cast<double>(config.router.num_experts);
    weights += 3 * hidden * static_cast<double>(config.router.top_k * config.expert_width + config.shared_width);
  }
  double pairs = 0;  // of query and key, in all layers
  for (const model::LayerConfig& layer : config.layers) {
    for (int64_t position = 0; position < tokens; ++position) {
      pairs += static_cast<double>(layer.window > 0 ? std::min(layer.window, position + 1) : position + 1);
    }
  }
  const double head = hidden * static_cast<double>(config.vocab_size);
  return 2 * (t * weights + head + 2 * pairs * static_cast<double>(config.q_width()));
}

double kv_bytes_read(const model::ModelConfig& config, int64_t context, int64_t bytes_a_value) {
  double positions = 0;
  for (const model::LayerConfig& layer : config.layers) {
    positions += static_cast<double>(layer.window > 0 ? std::min(layer.window, context) : context);
  }
  return positions * static_cast<double>(2 * config.kv_width() * bytes_a_value);
}

}  // namespace quadrille::plan
