// SPDX-License-Identifier: Apache-2.0
#include "formats/compressed_tensors.h"

#include <unordered_map>

#include "formats/compressed_tensors_schema.h"

namespace quadrille::formats {
namespace {

constexpr size_t kMaxEntries = 1'000'000;
// Each is tried on every module.
constexpr size_t kMaxRegexes = 1'000;

struct Regexed {
  ModulePattern pattern;
  size_t group = 0;
};

// Entries of one list (ignore, or all targets), sorted by how they match.
struct Matcher {
  std::unordered_map<std::string, std::vector<size_t>> names;  // a module path or class name -> groups
  std::vector<Regexed> regexes;

  Status add(const std::string& text, size_t group, const std::string& where) {
    if (names.size() >= kMaxEntries || regexes.size() >= kMaxRegexes)
      return make_error(ErrorCode::kInvalidData, "{}: expected at most {} entries and {} regular expressions", where,
                        kMaxEntries, kMaxRegexes);
    QD_TRY(ModulePattern pattern, ModulePattern::compile(text, where));
    if (pattern.is_regex())
      regexes.push_back({std::move(pattern), group});
    else
      names[text].push_back(group);
    return {};
  }
};

struct Hit {
  size_t group = 0;
  std::string text;
};

// Entries of the best rank that matches: exact path, else regex, else class name.
Result<std::vector<Hit>> find_hits(const Matcher& matcher, std::string_view path, std::string_view module_class) {
  std::vector<Hit> hits;
  const auto by_name = [&](std::string_view name) {
    const auto place = matcher.names.find(std::string(name));
    if (place == matcher.names.end()) return;
    for (const size_t group : place->second) hits.push_back({group, std::string(name)});
  };
  by_name(path);
  if (!hits.empty()) return hits;
  for (const Regexed& regexed : matcher.regexes) {
    QD_TRY(const bool is_match, regexed.pattern.matches_path(path));
    if (is_match) hits.push_back({regexed.group, regexed.pattern.text()});
  }
  if (hits.empty()) by_name(module_class);
  return hits;
}

bool is_empty(const Json* value) {
  return value == nullptr || (value->is_structured() && value->empty());
}

// Parts of the format that change the arithmetic and are not run: never ignored silently.
Status refuse_extras(const JsonObject& config) {
  if (config.has("kv_cache_scheme"))
    return make_error(ErrorCode::kUnsupported, "{}: a quantised KV cache is not run; expected null",
                      config.where("kv_cache_scheme"));
  if (const Json* transform = config.find("transform_config"); !is_empty(transform)) {
    const auto groups = transform->find("config_groups");
    const bool has_none = transform->is_object() && transform->size() == 1 && groups != transform->end() &&
                          groups->is_structured() && groups->empty();
    if (!has_none)
      return make_error(ErrorCode::kUnsupported,
                        "{}: weight and activation transforms (rotations) are not run; expected {{}}, found {}",
                        config.where("transform_config"), json_excerpt(*transform));
  }
  for (const char* key : {"sparsity_config", "moe_sparsity_config"}) {
    const Json* sparsity = config.find(key);
    if (is_empty(sparsity)) continue;
    const bool is_dense = sparsity->is_object() && sparsity->value("format", Json()) == "dense";
    if (!is_dense)
      return make_error(ErrorCode::kUnsupported,
                        "{}: sparse weights are not run; expected {{}} or format \"dense\", "
                        "found {}",
                        config.where(key), json_excerpt(*sparsity));
  }
  return {};
}

Status check_head(const JsonObject& config) {
  QD_TRY(const std::string method, config.get_string("quant_method"));
  if (method != "compressed-tensors")
    return make_error(ErrorCode::kUnsupported,
                      "{}: quant_method '{}' is not run; expected 'compressed-tensors' (W4A8), or a checkpoint without "
                      "quantization_config",
                      config.where("quant_method"), method);
  QD_TRY(const std::optional<std::string> status, config.find_string("quantization_status"));
  if (status && *status != "compressed" && *status != "frozen")
    return make_error(ErrorCode::kUnsupported,
                      "{}: expected \"compressed\", found \"{}\": export the checkpoint "
                      "compressed",
                      config.where("quantization_status"), *status);
  return refuse_extras(config);
}

}  // namespace

struct QuantizationConfig::State {
  std::string format;
  std::string version;
  std::vector<std::string> group_names;
  std::vector<QuantizationScheme> schemes;
  Matcher targets;
  Matcher ignore;
};

QuantizationConfig::QuantizationConfig() : state_(std::make_unique<State>()) {}
QuantizationConfig::QuantizationConfig(QuantizationConfig&&) noexcept = default;
QuantizationConfig& QuantizationConfig::operator=(QuantizationConfig&&) noexcept = default;
QuantizationConfig::~QuantizationConfig() = default;

const std::string& QuantizationConfig::format() const {
  return state_->format;
}
const std::string& QuantizationConfig::version() const {
  return state_->version;
}

Result<QuantizationConfig> QuantizationConfig::parse(const Json& json, const std::string& where) {
  if (!json.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: 'quantization_config': expected an object, found {}", where,
                      json_excerpt(json));
  const JsonObject object(json, where, "quantization_config");
  QD_TRY_STATUS(check_head(object));
  QuantizationConfig config;
  State& state = *config.state_;
  QD_TRY(const std::optional<std::string> format, object.find_string("format"));
  QD_TRY(const std::optional<std::string> version, object.find_string("version"));
  if (format) QD_TRY_STATUS(check_format(*format, object.where("format"), true));
  state.format = format.value_or("");
  state.version = version.value_or("");

  QD_TRY(const std::optional<JsonObject> groups, object.find_object("config_groups"));
  if (!groups || groups->json().empty()) return object.error("config_groups", "an object with at least one group");
  for (const auto& [name, value] : groups->json().items()) {
    QD_TRY(const SchemeGroup group, parse_scheme_group(*groups, name, state.format));
    for (const std::string& target : group.targets)
      QD_TRY_STATUS(state.targets.add(target, state.schemes.size(), groups->where(name)));
    state.schemes.push_back(group.scheme);
    state.group_names.push_back(name);
  }
  QD_TRY(const auto ignore, object.find_string_list("ignore"));
  if (ignore)
    for (const std::string& entry : *ignore) QD_TRY_STATUS(state.ignore.add(entry, 0, object.where("ignore")));
  return config;
}

Result<QuantizationDecision> QuantizationConfig::decide(std::string_view module_path,
                                                        std::string_view module_class) const {
  QuantizationDecision decision;
  QD_TRY(const std::vector<Hit> ignored, find_hits(state_->ignore, module_path, module_class));
  if (!ignored.empty()) {
    decision.rule = fmt::format("ignore '{}'", ignored.front().text);
    return decision;
  }
  QD_TRY(const std::vector<Hit> hits, find_hits(state_->targets, module_path, module_class));
  if (hits.empty()) {
    decision.rule = "no target matches";
    return decision;
  }
  const Hit& first = hits.front();
  const QuantizationScheme& scheme = state_->schemes[first.group];
  for (const Hit& hit : hits)
    if (state_->schemes[hit.group] != scheme)
      return make_error(ErrorCode::kInvalidData,
                        "module '{}': '{}' of {} and '{}' of {} both match and differ; expected one decision",
                        module_path, first.text, state_->group_names[first.group], hit.text,
                        state_->group_names[hit.group]);
  decision.kind = scheme.kind;
  decision.group_size = scheme.group_size;
  decision.format = scheme.format;
  decision.rule = fmt::format("{} target '{}'", state_->group_names[first.group], first.text);
  return decision;
}

const char* quantization_kind_name(QuantizationKind kind) {
  switch (kind) {
    case QuantizationKind::kUnquantized:
      return "unquantized";
    case QuantizationKind::kW4A8:
      return "w4a8";
    case QuantizationKind::kW4A16:
      return "w4a16";
  }
  return "unknown";
}

const char* weight_format_name(WeightFormat format) {
  return format == WeightFormat::kPackQuantized ? "pack-quantized" : "int-quantized";
}

}  // namespace quadrille::formats
