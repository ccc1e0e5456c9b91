// SPDX-License-Identifier: Apache-2.0
// Shapes are config.json texts, so that they take the way of every other model through its family.
#include "cli/bench_shapes.h"

#include <algorithm>

#include "formats/hf_config.h"
#include "formats/json.h"

namespace quadrille::cli {
namespace {

struct NamedShape {
  const char* name;
  const char* config;
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
};

}  // namespace

std::vector<std::string> bench_shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

Result<model::ModelConfig> bench_shape(const std::string& name, int64_t layers) {
  const auto* shape =
      std::find_if(std::begin(kShapes), std::end(kShapes), [&](const NamedShape& s) { return s.name == name; });
  if (shape == std::end(kShapes)) return make_error(ErrorCode::kInvalidArgument, "no shape is named '{}'", name);
  QD_TRY(formats::Json json, formats::parse_json(shape->config, name));
  if (layers > 0) json["num_hidden_layers"] = layers;
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

}  // namespace quadrille::cli
