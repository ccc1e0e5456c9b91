// SPDX-License-Identifier: Apache-2.0
// The fields that all families share, and the limits on them.
#include "model/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "model/families.h"
#include "model/forward.h"

namespace quadrille::model {
namespace {

Result<const Family*> find_family(const formats::HfConfig& raw) {
  std::vector<std::string> run;
  for (const Family* family : all_families()) {
    const auto& names = raw.architectures;
    const bool named = std::find(names.begin(), names.end(), family->architecture) != names.end();
    if (named || (names.empty() && raw.model_type == family->name)) return family;
    run.push_back(family->architecture);
  }
  const std::string found = raw.architectures.empty()
                                ? "model_type '" + raw.model_type + "'"
                                : fmt::format("architecture '{}'", fmt::join(raw.architectures, ", "));
  return make_error(ErrorCode::kUnsupported, "{}: {} does not run; those that run: {}", raw.file, found,
                    fmt::join(run, ", "));
}

Error rope_error(const formats::HfConfig& raw, const std::string& what) {
  return make_error(ErrorCode::kUnsupported, "{}: {}", raw.file, what);
}

Result<double> rope_number(const formats::HfConfig& raw, const char* key, double minimum) {
  const std::optional<double> value = raw.rope.number(key);
  if (!value || !(*value >= minimum)) {
    return make_error(ErrorCode::kInvalidData, "{}: rope type '{}': '{}': expected a number of at least {}, found {}",
                      raw.file, raw.rope.type, key, minimum, value ? fmt::format("{}", *value) : "nothing");
  }
  return *value;
}

// cos and sin times this: the file's value, else the ratio of both mscales, else 0.1 ln(factor) + 1.
double yarn_attention_factor(const formats::HfRope& rope, double factor) {
  if (const auto value = rope.number("attention_factor")) return *value;
  const auto mscale = [&](double a) { return factor <= 1 ? 1.0 : 0.1 * a * std::log(factor) + 1.0; };
  const auto numerator = rope.number("mscale"), denominator = rope.number("mscale_all_dim");
  if (numerator && denominator && *numerator != 0 && *denominator != 0)
    return mscale(*numerator) / mscale(*denominator);
  return mscale(1.0);
}

Result<RopeConfig> make_rope(const formats::HfConfig& raw, double default_theta) {
  RopeConfig rope;
  rope.type = raw.rope.type;
  rope.theta = raw.rope.theta.value_or(default_theta);
  if (raw.rope.partial_rotary_factor.value_or(1.0) != 1.0) {
    return rope_error(raw, fmt::format("'partial_rotary_factor' {}: this family rotates whole heads",
                                       *raw.rope.partial_rotary_factor));
  }
  if (rope.type == "default") return rope;
  if (rope.type != "linear" && rope.type != "yarn") {
    return rope_error(raw,
                      fmt::format("rope type '{}' does not run; those that run: default, linear, yarn", rope.type));
  }
  QD_TRY(rope.factor, rope_number(raw, "factor", 1.0));
  if (rope.type == "linear") return rope;
  rope.original_positions =
      raw.rope.number("original_max_position_embeddings").value_or(static_cast<double>(raw.max_position_embeddings));
  rope.beta_fast = raw.rope.number("beta_fast").value_or(32);
  rope.beta_slow = raw.rope.number("beta_slow").value_or(1);
  const auto truncate = raw.rope.flags.find("truncate");
  rope.truncate = truncate == raw.rope.flags.end() || truncate->second;
  rope.attention_factor = yarn_attention_factor(raw.rope, rope.factor);
  if (!(rope.original_positions >= 1 && rope.beta_fast > 0 && rope.beta_slow > 0 && rope.beta_fast >= rope.beta_slow &&
        rope.attention_factor > 0 && rope.theta > 1)) {
    return make_error(
        ErrorCode::kInvalidData,
        "{}: rope type 'yarn': expected rope_theta > 1, original_max_position_embeddings >= 1, beta_fast >= "
        "beta_slow > 0 and attention_factor > 0, found {}, {}, {}, {}, {}",
        raw.file, rope.theta, rope.original_positions, rope.beta_fast, rope.beta_slow, rope.attention_factor);
  }
  return rope;
}

// yarn stretches the positions that the model was trained on.
int64_t position_limit(const formats::HfConfig& raw, const RopeConfig& rope) {
  if (rope.type != "yarn") return raw.max_position_embeddings;
  const double stretched = std::min(rope.original_positions * rope.factor, 2147483647.0);
  return std::max(raw.max_position_embeddings, static_cast<int64_t>(stretched));
}

void replace(std::string* text, const std::string& placeholder, int64_t number) {
  const size_t place = text->find(placeholder);
  if (place != std::string::npos) text->replace(place, placeholder.size(), std::to_string(number));
}

}  // namespace

std::string TensorNames::layer_path(int64_t layer_index, const std::string& name, int64_t expert) const {
  std::string path = layer + name;
  replace(&path, "{layer}", layer_index);
  replace(&path, "{expert}", expert);
  return path;
}

int64_t ModelConfig::num_moe_layers() const {
  return std::count_if(layers.begin(), layers.end(), [](const LayerConfig& l) { return l.is_moe; });
}

Result<ModelConfig> make_model_config(const formats::HfConfig& raw) {
  QD_TRY(const Family* family, find_family(raw));
  if (raw.hidden_act != "silu" && raw.hidden_act != "swish") {
    return make_error(ErrorCode::kUnsupported, "{}: 'hidden_act' '{}' does not run; silu does", raw.file,
                      raw.hidden_act);
  }
  ModelConfig config;
  config.family = family->name;
  config.architecture = family->architecture;
  config.hidden_size = raw.hidden_size;
  config.num_layers = raw.num_hidden_layers;
  config.num_heads = raw.num_attention_heads;
  config.num_kv_heads = raw.num_key_value_heads;
  QD_TRY(config.head_dim, raw.require_head_dim());
  config.vocab_size = raw.vocab_size;
  config.rms_norm_eps = raw.rms_norm_eps;
  config.tie_word_embeddings = raw.tie_word_embeddings.value_or(false);
  QD_TRY(config.rope, make_rope(raw, family->default_rope_theta));
  config.max_positions = position_limit(raw, config.rope);
  config.layers.resize(config.num_layers);
  config.eos_token_ids = raw.eos_token_id;
  config.bos_token_id = raw.bos_token_id;
  QD_TRY_STATUS(family->fill(raw, &config));
  QD_TRY_STATUS(check_model_config(config, raw.file));
  return config;
}

Result<ModelConfig> read_model_config(const std::string& folder) {
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(folder));
  QD_TRY(ModelConfig config, make_model_config(raw));
  QD_TRY(const formats::HfGenerationConfig generation, formats::read_hf_generation_config(folder));
  auto& ids = config.eos_token_ids;
  ids.insert(ids.end(), generation.eos_token_id.begin(), generation.eos_token_id.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  if (!config.bos_token_id) config.bos_token_id = generation.bos_token_id;
  return config;
}

Status check_model_config(const ModelConfig& config, const std::string& where) {
  struct Bound {
    const char* name;
    int64_t value, minimum, maximum;
  };
  constexpr int64_t kWide = 1 << 24, kInt32 = (int64_t{1} << 31) - 1;
  const bool has_moe = config.num_moe_layers() > 0;
  const bool has_dense = config.num_moe_layers() < config.num_layers;
  const Bound bounds[] = {
      {"hidden_size", config.hidden_size, 1, kWide},
      {"num_hidden_layers", config.num_layers, 1, 10'000},
      {"num_attention_heads", config.num_heads, 1, 1 << 16},
      {"num_key_value_heads", config.num_kv_heads, 1, config.num_heads},
      {"head_dim", config.head_dim, 2, 1 << 14},
      {"num_attention_heads * head_dim", config.q_width(), 1, kWide},
      {"vocab_size", config.vocab_size, 1, 1 << 28},
      {"max_position_embeddings", config.max_positions, 1, kInt32},
      {"expert width", config.expert_width, has_moe ? 1 : 0, kWide},
      {"shared expert width", config.shared_width, 0, kWide},
      {"intermediate_size", config.dense_width, has_dense ? 1 : 0, kWide},
  };
  for (const Bound& bound : bounds) {
    if (bound.value < bound.minimum || bound.value > bound.maximum) {
      return make_error(ErrorCode::kInvalidData, "{}: '{}': expected {} to {}, found {}", where, bound.name,
                        bound.minimum, bound.maximum, bound.value);
    }
  }
  if (config.head_dim % 2 != 0) {
    return make_error(ErrorCode::kUnsupported, "{}: 'head_dim' {}: rotary pairs need an even number", where,
                      config.head_dim);
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    return make_error(ErrorCode::kInvalidData, "{}: 'num_key_value_heads' {} does not divide the {} heads", where,
                      config.num_kv_heads, config.num_heads);
  }
  if (static_cast<int64_t>(config.layers.size()) != config.num_layers) {
    return make_error(ErrorCode::kInvalidData, "{}: {} layers described, {} in the model", where, config.layers.size(),
                      config.num_layers);
  }
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1)) {
    return make_error(ErrorCode::kInvalidData, "{}: 'rms_norm_eps': expected between 0 and 1, found {}", where,
                      config.rms_norm_eps);
  }
  if (!has_moe) return {};
  if (auto rule = moe::check_router_rule(config.router); !rule) return rule.error().in(where);
  return {};
}

}  // namespace quadrille::model
