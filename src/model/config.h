// SPDX-License-Identifier: Apache-2.0
// What a model is, in numbers and rules: made from config.json by the family of its architecture (families.h), read by
// the loader, the decoder and inspect. No code below this asks for the name of a family.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/hf_config.h"
#include "moe/router.h"

namespace quadrille::model {

enum class QkNorm {
  kNone,
  kPerHead,          // RMSNorm over each head of q and of k (Qwen3-MoE)
  kWholeProjection,  // RMSNorm over all of q and all of k before the heads are split (OLMoE)
};

// Rotary embedding, half pairs over the whole head. yarn and linear are defined in rope.h.
struct RopeConfig {
  std::string type = "default";  // default, linear, yarn
  double theta = 10000;
  double factor = 1;              // linear, yarn
  double original_positions = 0;  // yarn
  double beta_fast = 32, beta_slow = 1;
  double attention_factor = 1;  // multiplies cos and sin (yarn)
  bool truncate = true;         // yarn: whole-numbered correction range
};

// Tensor names of a family, without ".weight". {layer}, {expert} stand for numbers.
struct TensorNames {
  std::string embedding = "model.embed_tokens";
  std::string final_norm = "model.norm";
  std::string lm_head = "lm_head";
  std::string layer = "model.layers.{layer}.";  // in front of all below
  std::string input_norm = "input_layernorm";
  std::string post_attention_norm = "post_attention_layernorm";
  std::string q = "self_attn.q_proj", k = "self_attn.k_proj", v = "self_attn.v_proj", o = "self_attn.o_proj";
  std::string q_norm = "self_attn.q_norm", k_norm = "self_attn.k_norm";
  std::string router = "mlp.gate";
  std::string expert_gate = "mlp.experts.{expert}.gate_proj";
  std::string expert_up = "mlp.experts.{expert}.up_proj";
  std::string expert_down = "mlp.experts.{expert}.down_proj";
  std::string shared_gate_proj = "mlp.shared_expert.gate_proj";
  std::string shared_up = "mlp.shared_expert.up_proj";
  std::string shared_down = "mlp.shared_expert.down_proj";
  std::string shared_gate = "mlp.shared_expert_gate";
  std::string dense_gate = "mlp.gate_proj", dense_up = "mlp.up_proj", dense_down = "mlp.down_proj";

  // The whole module path of a layer's module: layer_path(3, expert_up, 17).
  std::string layer_path(int64_t layer_index, const std::string& name, int64_t expert = -1) const;
};

struct LayerConfig {
  bool is_moe = true;
  int64_t window = 0;  // sliding window of the attention; 0: all positions
};

struct ModelConfig {
  std::string family;        // "qwen3_moe"
  std::string architecture;  // "Qwen3MoeForCausalLM"
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // even
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  double rms_norm_eps = 0;
  bool tie_word_embeddings = false;

  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false;
  bool o_bias = false;
  std::optional<double> clip_qkv;  // q, k, v are clamped to [-clip, clip] before the heads are split
  RopeConfig rope;

  int64_t dense_width = 0;   // of the layers that are no MoE; 0: there is none
  int64_t expert_width = 0;  // I
  int64_t shared_width = 0;  // of all shared experts together; 0: none
  bool shared_has_gate = false;
  moe::RouterRule router;  // num_experts and top_k stand here

  std::vector<LayerConfig> layers;  // [num_layers]
  TensorNames names;

  std::vector<int64_t> eos_token_ids;  // config.json and generation_config.json together, ascending
  std::optional<int64_t> bos_token_id;

  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
  int64_t num_moe_layers() const;
};

// The family that claims the architecture turns the raw fields into a model. Errors: kUnsupported names the
// architecture (or rope type, activation, ...) that was found and those that run; kInvalidData for fields that are
// missing or contradict each other, headed by the file.
Result<ModelConfig> make_model_config(const formats::HfConfig& config);
// Reads FOLDER/config.json and FOLDER/generation_config.json.
Result<ModelConfig> read_model_config(const std::string& folder);

// Limits on every number, so that a hostile config is an error and no allocation (kInvalidData / kUnsupported).
Status check_model_config(const ModelConfig& config, const std::string& where);

}  // namespace quadrille::model
