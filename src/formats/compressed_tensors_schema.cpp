// SPDX-License-Identifier: Apache-2.0
#include "formats/compressed_tensors_schema.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <span>

namespace quadrille::formats {
namespace {

constexpr std::array<std::string_view, 12> kArgKeys = {
    "num_bits", "type",     "symmetric",   "group_size", "strategy", "block_structure",
    "dynamic",  "actorder", "scale_dtype", "zp_dtype",   "observer", "observer_kwargs"};
constexpr std::array<std::string_view, 5> kGroupKeys = {"targets", "weights", "input_activations", "output_activations",
                                                        "format"};
constexpr std::array<std::string_view, 7> kStrategies = {"tensor", "channel",      "group",    "block",
                                                         "token",  "tensor_group", "attn_head"};
constexpr const char* kLegalWeights =
    "this engine runs int4 weights, symmetric, with group_size 32, 64, 128 or one scale a channel";
constexpr const char* kLegalActivations =
    "this engine runs 8-bit float activations, symmetric, dynamic, strategy 'token', or none";

// QuantizationArgs as they stand, defaults filled in.
struct Args {
  int64_t num_bits = 8;
  std::string type = "int";
  bool symmetric = true;
  std::optional<int64_t> group_size;
  std::string strategy;
  bool is_dynamic = false;
  bool is_local = false;  // dynamic: "local"
};

template <typename... Parts>
Error refuse(fmt::format_string<Parts...> text, Parts&&... parts) {
  return make_error(ErrorCode::kUnsupported, text, std::forward<Parts>(parts)...);
}

Status check_keys(const JsonObject& object, std::span<const std::string_view> legal) {
  for (const auto& [key, value] : object.json().items())
    if (std::find(legal.begin(), legal.end(), key) == legal.end())
      return make_error(ErrorCode::kInvalidData, "{} is not a key that compressed-tensors knows; expected one of {}",
                        object.where(key), fmt::join(legal, ", "));
  return {};
}

Status read_dynamic(const JsonObject& object, Args& args) {
  const Json* dynamic = object.find("dynamic");
  if (dynamic == nullptr) return {};
  if (dynamic->is_boolean()) {
    args.is_dynamic = dynamic->get<bool>();
    return {};
  }
  if (!dynamic->is_string() || dynamic->get_ref<const std::string&>() != "local")
    return object.error("dynamic", "true, false or \"local\"");
  args.is_dynamic = args.is_local = true;
  return {};
}

// "weight" and "static" reorder while quantising and leave the storage alone; "group" and "dynamic" add weight_g_idx.
Status check_actorder(const JsonObject& object) {
  const Json* order = object.find("actorder");
  if (order == nullptr) return {};
  const bool is_off = order->is_boolean() && !order->get<bool>();
  if (is_off || *order == "weight" || *order == "static") return {};
  if (order->is_boolean() || *order == "group" || *order == "dynamic")
    return refuse(
        "{}: activation order {} needs weight_g_idx, which this engine does not run; expected null, \"weight\" or "
        "\"static\"",
        object.where("actorder"), json_excerpt(*order));
  return object.error("actorder", "null, \"weight\", \"static\", \"group\" or \"dynamic\"");
}

// The library's inference for a strategy that is not given, and its rules of consistency.
Status settle_strategy(const JsonObject& object, Args& args) {
  QD_TRY(const std::optional<std::string> strategy, object.find_string("strategy"));
  QD_TRY(args.group_size, object.find_int("group_size", -1, 1 << 24));
  if (args.group_size == 0) return object.error("group_size", "-1 or an integer of at least 1");
  if (strategy && std::find(kStrategies.begin(), kStrategies.end(), *strategy) == kStrategies.end())
    return object.error("strategy", fmt::format("one of {}", fmt::join(kStrategies, ", ")));
  if (strategy)
    args.strategy = *strategy;
  else if (!args.group_size)
    args.strategy = "tensor";
  else
    args.strategy = *args.group_size > 0 ? "group" : "channel";
  const bool is_grouped = args.strategy == "group" || args.strategy == "tensor_group";
  if (is_grouped && args.group_size.value_or(0) <= 0)
    return object.error("group_size", fmt::format("a positive integer for strategy '{}'", args.strategy));
  if (!is_grouped && args.group_size.value_or(-1) > 0)
    return object.error("group_size", fmt::format("none for strategy '{}'", args.strategy));
  if ((args.strategy == "block") != object.has("block_structure"))
    return object.error("block_structure",
                        args.strategy == "block" ? "[rows, columns]" : "none without strategy 'block'");
  return {};
}

Result<Args> read_args(const JsonObject& object) {
  QD_TRY_STATUS(check_keys(object, kArgKeys));
  Args args;
  QD_TRY(const std::optional<int64_t> bits, object.find_int("num_bits", 1, 64));
  QD_TRY(const std::optional<std::string> type, object.find_string("type"));
  QD_TRY(const std::optional<bool> symmetric, object.find_bool("symmetric"));
  args.num_bits = bits.value_or(args.num_bits);
  args.type = type.value_or(args.type);
  args.symmetric = symmetric.value_or(args.symmetric);
  if (args.type != "int" && args.type != "float") return object.error("type", "\"int\" or \"float\"");
  QD_TRY_STATUS(read_dynamic(object, args));
  QD_TRY_STATUS(settle_strategy(object, args));
  QD_TRY_STATUS(check_actorder(object));
  return args;
}

// Scales other than bf16/f16/f32 belong to formats that are not run (the loader looks at the tensors themselves).
Status check_scale_dtype(const JsonObject& object) {
  QD_TRY(std::optional<std::string> name, object.find_string("scale_dtype"));
  if (!name) return {};
  if (name->rfind("torch.", 0) == 0) name = name->substr(6);
  if (*name == "bfloat16" || *name == "float16" || *name == "float32") return {};
  return refuse("{}: scales of type '{}' are not run; expected bfloat16", object.where("scale_dtype"), *name);
}

Status check_weights(const JsonObject& object, const Args& args, QuantizationScheme& scheme) {
  if (args.num_bits != 4)
    return refuse("{}: {}-bit weights are not run; {}", object.where("num_bits"), args.num_bits, kLegalWeights);
  if (args.type != "int")
    return refuse("{}: weights of type '{}' are not run; {}", object.where("type"), args.type, kLegalWeights);
  if (!args.symmetric)
    return refuse("{}: asymmetric weights (zero points) are not run; {}", object.where("symmetric"), kLegalWeights);
  if (args.is_dynamic)
    return refuse("{}: weights that are quantised at run time are not run; {}", object.where("dynamic"), kLegalWeights);
  QD_TRY_STATUS(check_scale_dtype(object));
  if (args.strategy == "channel") {
    scheme.group_size = 0;
    return {};
  }
  if (args.strategy != "group")
    return refuse("{}: weight strategy '{}' is not run; {}", object.where("strategy"), args.strategy, kLegalWeights);
  const int64_t size = *args.group_size;
  if (size != 32 && size != 64 && size != 128)
    return refuse("{}: group size {} is not run; {}", object.where("group_size"), size, kLegalWeights);
  scheme.group_size = size;
  return {};
}

Status check_activations(const JsonObject& object, const Args& args) {
  if (args.type != "float")
    return refuse("{}: activations of type '{}' (INT{}) are not run; {}", object.where("type"), args.type,
                  args.num_bits, kLegalActivations);
  if (args.num_bits != 8)
    return refuse("{}: {}-bit activations are not run; {}", object.where("num_bits"), args.num_bits, kLegalActivations);
  if (!args.symmetric)
    return refuse("{}: asymmetric activations are not run; {}", object.where("symmetric"), kLegalActivations);
  if (!args.is_dynamic)
    return refuse("{}: static activation scales (strategy '{}') are not run; {}", object.where("dynamic"),
                  args.strategy, kLegalActivations);
  if (args.strategy != "token" || args.is_local)
    return refuse("{}: activation strategy '{}' is not run; {}", object.where("strategy"), args.strategy,
                  kLegalActivations);
  return {};
}

// The format of a group: its own, else the global one, else what the library would infer.
Result<WeightFormat> settle_format(const std::optional<std::string>& own, const std::string& global_format,
                                   QuantizationKind kind, const std::string& where) {
  if (own) QD_TRY_STATUS(check_format(*own, where, false));
  if (!own && global_format == "mixed-precision")
    return make_error(ErrorCode::kInvalidData,
                      "{}: the global format is 'mixed-precision': expected a format in every group, found none",
                      where);
  const std::string format = own.value_or(global_format);
  if (format.empty())
    return kind == QuantizationKind::kW4A16 ? WeightFormat::kPackQuantized : WeightFormat::kIntQuantized;
  return format == "pack-quantized" ? WeightFormat::kPackQuantized : WeightFormat::kIntQuantized;
}

Result<QuantizationScheme> parse_scheme(const JsonObject& group, const std::string& global_format) {
  QuantizationScheme scheme;
  QD_TRY_STATUS(check_keys(group, kGroupKeys));
  QD_TRY(const std::optional<JsonObject> weights, group.find_object("weights"));
  QD_TRY(const std::optional<JsonObject> inputs, group.find_object("input_activations"));
  if (!weights)
    return refuse("{}: a group without quantised weights is not run; {}", group.where("weights"), kLegalWeights);
  if (group.has("output_activations"))
    return refuse("{}: quantised output activations are not run; expected null", group.where("output_activations"));
  QD_TRY(const Args weight_args, read_args(*weights));
  QD_TRY_STATUS(check_weights(*weights, weight_args, scheme));
  scheme.kind = inputs ? QuantizationKind::kW4A8 : QuantizationKind::kW4A16;
  if (inputs) {
    QD_TRY(const Args input_args, read_args(*inputs));
    QD_TRY_STATUS(check_activations(*inputs, input_args));
  }
  QD_TRY(const std::optional<std::string> format, group.find_string("format"));
  QD_TRY(scheme.format, settle_format(format, global_format, scheme.kind, group.where("format")));
  return scheme;
}

// Presets of the library that this engine runs.
struct Preset {
  const char* name;
  QuantizationKind kind;
};
constexpr Preset kPresets[] = {{"W4AFP8", QuantizationKind::kW4A8}, {"W4A16", QuantizationKind::kW4A16}};

Result<QuantizationScheme> parse_preset(const std::string& name, const std::string& global_format,
                                        const std::string& where) {
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
  for (const Preset& preset : kPresets) {
    if (upper != preset.name) continue;
    QuantizationScheme scheme{preset.kind, 128, WeightFormat::kPackQuantized};
    QD_TRY(scheme.format, settle_format(std::nullopt, global_format, preset.kind, where));
    return scheme;
  }
  return refuse("{}: preset scheme '{}' is not run; expected W4AFP8 or W4A16, or a group with targets and weights",
                where, name);
}

}  // namespace

Status check_format(const std::string& format, const std::string& where, bool is_global) {
  if (format == "pack-quantized" || format == "int-quantized") return {};
  if (format == "mixed-precision" && is_global) return {};
  if (format == "mixed-precision")
    return make_error(ErrorCode::kInvalidData, "{}: 'mixed-precision' is legal for the whole config only", where);
  return refuse("{}: format '{}' is not run; expected pack-quantized or int-quantized{}", where, format,
                is_global ? ", or mixed-precision of these" : "");
}

Result<SchemeGroup> parse_scheme_group(const JsonObject& groups, const std::string& name,
                                       const std::string& global_format) {
  SchemeGroup result;
  const Json* value = groups.find(name);
  if (value == nullptr) return groups.error(name, "a group or a list of targets");
  if (value->is_array()) {
    QD_TRY(const auto targets, groups.find_string_list(name));
    result.targets = *targets;
    QD_TRY(result.scheme, parse_preset(name, global_format, groups.where(name)));
    return result;
  }
  QD_TRY(const std::optional<JsonObject> group, groups.find_object(name));
  QD_TRY(const auto targets, group->find_string_list("targets"));
  if (!targets) return group->error("targets", "a list of strings");
  result.targets = *targets;
  QD_TRY(result.scheme, parse_scheme(*group, global_format));
  return result;
}

}  // namespace quadrille::formats
