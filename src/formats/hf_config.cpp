// SPDX-License-Identifier: Apache-2.0
#include "formats/hf_config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "formats/hf_config_fields.h"

namespace quadrille::formats {
namespace {

constexpr double kMinTheta = 1e-3;
constexpr double kMaxTheta = 1e12;
constexpr int64_t kMaxLayerNumber = 10'000;

// One of the two rope objects. Numbers, flags and lists are kept as they are; the model decides what it runs.
Result<HfRope> read_rope_object(const JsonObject& object) {
  HfRope rope;
  QD_TRY(const std::optional<std::string> rope_type, object.find_string("rope_type"));
  QD_TRY(const std::optional<std::string> old_type, object.find_string("type"));
  rope.type = rope_type.value_or(old_type.value_or("default"));
  QD_TRY(rope.theta, object.find_double("rope_theta", kMinTheta, kMaxTheta));
  QD_TRY(rope.partial_rotary_factor, object.find_double("partial_rotary_factor", 1e-6, 1.0));
  for (const auto& [key, value] : object.json().items()) {
    if (value.is_null() || value.is_string()) continue;
    if (value.is_boolean()) {
      rope.flags[key] = value.get<bool>();
    } else if (value.is_number()) {
      QD_TRY(rope.numbers[key], object.get_double(key, -1e30, 1e30));
    } else if (value.is_array()) {
      std::vector<double>& list = rope.lists[key];
      for (const Json& element : value) {
        if (!element.is_number() || list.size() >= 65'536) return object.error(key, "a list of numbers");
        list.push_back(element.get<double>());
      }
    } else {
      return make_error(ErrorCode::kUnsupported,
                        "{}: expected one position encoding for all layers, found an object for "
                        "each kind of layer",
                        object.where(key));
    }
  }
  return rope;
}

// What both say must be the same.
Status check_agreement(const JsonObject& top, const HfRope& parameters, const HfRope& scaling) {
  if (scaling.type != parameters.type)
    return top.error("rope_scaling", fmt::format("the rope_type '{}' of rope_parameters", parameters.type));
  for (const auto& [key, number] : scaling.numbers) {
    const auto other = parameters.numbers.find(key);
    if (other == parameters.numbers.end() || other->second != number)
      return top.error("rope_scaling", fmt::format("the '{}' of rope_parameters", key));
  }
  return {};
}

Result<HfRope> read_rope(const JsonObject& top) {
  QD_TRY(const std::optional<JsonObject> parameters, top.find_object("rope_parameters"));
  QD_TRY(const std::optional<JsonObject> scaling, top.find_object("rope_scaling"));
  HfRope rope;
  if (parameters) {
    QD_TRY(rope, read_rope_object(*parameters));
  }
  if (scaling) {
    QD_TRY(HfRope old, read_rope_object(*scaling));
    if (parameters) QD_TRY_STATUS(check_agreement(top, rope, old));
    if (!parameters) rope = std::move(old);
  }
  QD_TRY(const std::optional<double> theta, top.find_double("rope_theta", kMinTheta, kMaxTheta));
  if (theta && rope.theta && *theta != *rope.theta)
    return top.error("rope_theta", fmt::format("the rope_theta {} of rope_parameters", *rope.theta));
  if (theta) rope.theta = theta;
  QD_TRY(const std::optional<double> partial, top.find_double("partial_rotary_factor", 1e-6, 1.0));
  if (partial && !rope.partial_rotary_factor) rope.partial_rotary_factor = partial;
  return rope;
}

// Three spellings of one number.
Status read_num_experts(const JsonObject& object, HfConfig& config) {
  const char* first = nullptr;
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    QD_TRY(const std::optional<int64_t> number, object.find_int(key, 1, 1 << 16));
    if (!number) continue;
    if (config.num_experts && *config.num_experts != *number)
      return object.error(key, fmt::format("the {} of '{}'", *config.num_experts, first));
    if (!config.num_experts) first = key;
    config.num_experts = number;
  }
  if (config.num_experts && config.num_experts_per_tok && *config.num_experts_per_tok > *config.num_experts)
    return object.error("num_experts_per_tok",
                        fmt::format("an integer from 1 to the number of experts, {}", *config.num_experts));
  return {};
}

Status read_heads(const JsonObject& object, HfConfig& config) {
  QD_TRY(const std::optional<int64_t> kv_heads, object.find_int("num_key_value_heads", 1, config.num_attention_heads));
  config.num_key_value_heads = kv_heads.value_or(config.num_attention_heads);
  if (config.num_attention_heads % config.num_key_value_heads != 0)
    return object.error("num_key_value_heads",
                        fmt::format("a divisor of num_attention_heads, {}", config.num_attention_heads));
  return {};
}

Status read_layer_lists(const JsonObject& object, HfConfig& config) {
  QD_TRY(const auto dense, object.find_int_list("mlp_only_layers", 0, kMaxLayerNumber));
  if (dense) config.mlp_only_layers = *dense;
  QD_TRY(const auto types, object.find_string_list("layer_types"));
  if (!types) return {};
  if (static_cast<int64_t>(types->size()) != config.num_hidden_layers)
    return object.error("layer_types", fmt::format("{} entries, one a layer", config.num_hidden_layers));
  config.layer_types = *types;
  return {};
}

Status read_dtype(const JsonObject& object, HfConfig& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    QD_TRY(std::optional<std::string> name, object.find_string(key));
    if (!name) continue;
    if (name->rfind("torch.", 0) == 0) name = name->substr(6);
    if (config.dtype && *config.dtype != *name)
      return object.error(key, fmt::format("the '{}' of dtype", *config.dtype));
    config.dtype = name;
  }
  return {};
}

Status read_quantization(const JsonObject& object, HfConfig& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* value = object.find(key);
    if (value == nullptr || config.quantization_config) continue;
    if (!value->is_object()) return object.error(key, "an object");
    config.quantization_config = *value;
  }
  return {};
}

}  // namespace

std::optional<double> HfRope::number(const std::string& key) const {
  const auto place = numbers.find(key);
  return place == numbers.end() ? std::nullopt : std::optional(place->second);
}

Result<HfConfig> parse_hf_config(const Json& json, const std::string& file) {
  if (!json.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: expected a JSON object, found {}", file, json_excerpt(json));
  const JsonObject object(json, file);
  HfConfig config;
  config.file = file;
  QD_TRY(const auto architectures, object.find_string_list("architectures"));
  if (architectures) config.architectures = *architectures;
  QD_TRY(config.model_type, object.get_string("model_type"));
  if (!object.has("hidden_size") && object.has("text_config"))
    return make_error(ErrorCode::kUnsupported,
                      "{}: model_type '{}' keeps its language model in 'text_config' (a multimodal model); expected a "
                      "text-only checkpoint",
                      file, config.model_type);
  QD_TRY_STATUS(read_plain_fields(object, config));
  QD_TRY(config.rms_norm_eps, object.get_double("rms_norm_eps", 1e-30, 0.999));
  QD_TRY(const std::optional<std::string> activation, object.find_string("hidden_act"));
  if (activation) config.hidden_act = *activation;
  QD_TRY_STATUS(read_heads(object, config));
  QD_TRY(config.rope, read_rope(object));
  QD_TRY_STATUS(read_num_experts(object, config));
  QD_TRY_STATUS(read_layer_lists(object, config));
  QD_TRY_STATUS(read_dtype(object, config));
  QD_TRY_STATUS(read_quantization(object, config));
  config.raw = json;
  return config;
}

Result<HfConfig> read_hf_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  QD_TRY(const Json json, parse_json_file(path));
  return parse_hf_config(json, path);
}

namespace {

template <typename Value>
Result<Value> require(const std::optional<Value>& field, const char* key, const HfConfig& config) {
  if (!field)
    return make_error(ErrorCode::kInvalidData, "{}: '{}' is missing; model_type '{}' needs it", config.file, key,
                      config.model_type);
  return *field;
}

}  // namespace

Result<int64_t> HfConfig::require_int(const std::optional<int64_t>& field, const char* key) const {
  return require(field, key, *this);
}
Result<bool> HfConfig::require_bool(const std::optional<bool>& field, const char* key) const {
  return require(field, key, *this);
}
Result<double> HfConfig::require_double(const std::optional<double>& field, const char* key) const {
  return require(field, key, *this);
}

Result<int64_t> HfConfig::require_head_dim() const {
  if (head_dim) return *head_dim;
  if (hidden_size % num_attention_heads != 0)
    return make_error(ErrorCode::kInvalidData,
                      "{}: 'head_dim' is missing and hidden_size {} is no multiple of num_attention_heads {}", file,
                      hidden_size, num_attention_heads);
  return hidden_size / num_attention_heads;
}

Result<HfGenerationConfig> parse_hf_generation_config(const Json& json, const std::string& file) {
  if (!json.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: expected a JSON object, found {}", file, json_excerpt(json));
  const JsonObject object(json, file);
  constexpr int64_t kMaxInt = (int64_t{1} << 31) - 1;
  HfGenerationConfig config;
  QD_TRY(config.eos_token_id, object.find_int_or_list("eos_token_id", 0, kMaxInt));
  QD_TRY(config.bos_token_id, object.find_int("bos_token_id", -1, kMaxInt));
  QD_TRY(config.pad_token_id, object.find_int("pad_token_id", -1, kMaxInt));
  QD_TRY(config.do_sample, object.find_bool("do_sample"));
  QD_TRY(config.temperature, object.find_double("temperature", 0.0, 1e6));
  QD_TRY(config.top_k, object.find_int("top_k", -1, kMaxInt));
  QD_TRY(config.top_p, object.find_double("top_p", 0.0, 1.0));
  QD_TRY(config.min_p, object.find_double("min_p", 0.0, 1.0));
  QD_TRY(config.repetition_penalty, object.find_double("repetition_penalty", 1e-6, 1e6));
  QD_TRY(config.max_new_tokens, object.find_int("max_new_tokens", 1, kMaxInt));
  if (config.bos_token_id == -1) config.bos_token_id.reset();
  if (config.pad_token_id == -1) config.pad_token_id.reset();
  if (config.top_k == -1) config.top_k = 0;
  return config;
}

Result<HfGenerationConfig> read_hf_generation_config(const std::string& folder) {
  const std::string path = folder + "/generation_config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return HfGenerationConfig();
  QD_TRY(const Json json, parse_json_file(path));
  return parse_hf_generation_config(json, path);
}

}  // namespace quadrille::formats
