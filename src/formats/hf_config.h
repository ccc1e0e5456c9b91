// SPDX-License-Identifier: Apache-2.0
// config.json and generation_config.json as they stand in a folder: raw fields, each checked for type and range, no
// decision about what they mean. The families of the model module turn them into a model.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::formats {

// Position encoding in either spelling: rope_theta + rope_scaling at the top (transformers 4), or rope_parameters
// {rope_type, rope_theta, ...} (transformers 5). Where both stand they must agree.
struct HfRope {
  std::string type = "default";  // "default", "linear", "dynamic", "yarn", "longrope", "llama3", "mrope", ...
  std::optional<double> theta;   // > 0
  std::optional<double> partial_rotary_factor;       // in (0, 1]; also from the top level
  std::map<std::string, double> numbers;             // factor, beta_fast, original_max_position_embeddings, mscale, ...
  std::map<std::string, bool> flags;                 // truncate, ...
  std::map<std::string, std::vector<double>> lists;  // short_factor, mrope_section, ...
  // The first number of that name, or nothing.
  std::optional<double> number(const std::string& key) const;
};

struct HfConfig {
  std::string file;  // path of config.json, the head of errors about it
  std::vector<std::string> architectures;
  std::string model_type;

  // Required in every family that runs; all >= 1.
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // num_attention_heads when absent; divides it
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0;  // in (0, 1)
  std::string hidden_act = "silu";

  std::optional<int64_t> head_dim;
  HfRope rope;
  std::optional<bool> tie_word_embeddings;

  // Feed-forward widths and experts. A family requires what it needs through require_int().
  std::optional<int64_t> intermediate_size;
  std::optional<int64_t> moe_intermediate_size;
  std::optional<int64_t> shared_expert_intermediate_size;
  std::optional<int64_t> num_experts;          // num_experts, num_local_experts or n_routed_experts; they must agree
  std::optional<int64_t> num_experts_per_tok;  // 1..num_experts
  std::optional<int64_t> n_shared_experts;
  std::optional<bool> norm_topk_prob;
  std::optional<int64_t> decoder_sparse_step;
  std::vector<int64_t> mlp_only_layers;  // a number behind the last layer changes nothing
  std::optional<int64_t> first_k_dense_replace;
  std::optional<double> routed_scaling_factor;
  std::optional<std::string> scoring_func;
  std::optional<std::string> topk_method;
  std::optional<int64_t> n_group;
  std::optional<int64_t> topk_group;

  // Attention.
  std::optional<int64_t> sliding_window;  // null, and 0 as "none", count as absent
  std::optional<bool> use_sliding_window;
  std::optional<int64_t> max_window_layers;
  std::vector<std::string> layer_types;  // [] or num_hidden_layers entries
  std::optional<bool> attention_bias;
  std::optional<bool> qkv_bias;
  std::optional<double> clip_qkv;  // > 0
  std::optional<double> attention_dropout;

  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_id;  // an int or a list in the file; each >= 0
  std::optional<int64_t> pad_token_id;
  std::optional<std::string> dtype;  // torch_dtype or dtype: "bfloat16", "float16", "float32", ... without "torch."

  std::optional<Json> quantization_config;  // raw; also from compression_config
  Json raw;                                 // the whole file, for what this struct lacks

  // head_dim, or hidden_size / num_attention_heads where it is absent; an error where that is no integer.
  Result<int64_t> require_head_dim() const;
  // The value, or an error "FILE: 'KEY' is missing; MODEL_TYPE needs it".
  Result<int64_t> require_int(const std::optional<int64_t>& field, const char* key) const;
  Result<bool> require_bool(const std::optional<bool>& field, const char* key) const;
  Result<double> require_double(const std::optional<double>& field, const char* key) const;
};

struct HfGenerationConfig {
  std::vector<int64_t> eos_token_id;  // an int or a list in the file
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
  std::optional<bool> do_sample;
  std::optional<double> temperature;         // >= 0
  std::optional<int64_t> top_k;              // >= 0
  std::optional<double> top_p;               // in [0, 1]
  std::optional<double> min_p;               // in [0, 1]
  std::optional<double> repetition_penalty;  // > 0
  std::optional<int64_t> max_new_tokens;
};

// FOLDER/config.json. Errors: kNotFound; kInvalidData "FILE: 'KEY': expected ..., found ...".
Result<HfConfig> read_hf_config(const std::string& folder);
// The same from JSON already parsed; `file` heads the errors.
Result<HfConfig> parse_hf_config(const Json& json, const std::string& file);
// FOLDER/generation_config.json; all empty when there is no such file.
Result<HfGenerationConfig> read_hf_generation_config(const std::string& folder);
Result<HfGenerationConfig> parse_hf_generation_config(const Json& json, const std::string& file);

}  // namespace quadrille::formats
