// SPDX-License-Identifier: Apache-2.0
#include "quantize/folder_plan.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>

#include "formats/compressed_tensors.h"

namespace quadrille::quantize {
namespace {

namespace fs = std::filesystem;
using formats::DType;
using formats::Json;
using formats::TensorView;

// Last part of the module path of a linear layer. "*_proj" and the experts' w1, w2, w3 cover the families that run;
// the other name is a projection of latent attention.
constexpr std::string_view kProjectionSuffix = "_proj";
constexpr std::array<std::string_view, 1> kLinearNames = {"kv_a_proj_with_mqa"};
constexpr std::array<std::string_view, 3> kExpertNames = {"w1", "w2", "w3"};
constexpr std::string_view kWeight = ".weight";
// The layout of the files that this version of the library writes.
constexpr const char* kFormatVersion = "0.20.0";

// Files that travel with a model: these endings, less what this command writes itself.
constexpr std::array<std::string_view, 6> kCopiedEndings = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".md"};
constexpr std::array<std::string_view, 3> kCopiedNames = {"LICENSE", "NOTICE", "USE_POLICY"};
constexpr uint64_t kMaxCopiedBytes = 256ull << 20;

bool is_number(std::string_view part) {
  return !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); });
}

std::vector<std::string_view> split_path(std::string_view path) {
  std::vector<std::string_view> parts;
  for (size_t start = 0; start <= path.size();) {
    const size_t dot = std::min(path.find('.', start), path.size());
    parts.push_back(path.substr(start, dot - start));
    start = dot + 1;
  }
  return parts;
}

bool is_floating(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
}

// "…experts.gate_up_proj", "…experts.down_proj": all experts of a layer in one tensor.
bool is_fused_experts(const TensorView& tensor) {
  return tensor.shape.size() == 3 && tensor.name.find(".experts.") != std::string::npos &&
         (tensor.name.ends_with("_proj") || tensor.name.ends_with("_proj.weight"));
}

Error already_quantized(const std::string& where, const std::string& what) {
  return make_error(ErrorCode::kUnsupported, "{}: is quantised already ({}); expected a bf16, f16 or f32 checkpoint",
                    where, what);
}

Status check_source(const TensorView& tensor) {
  if (tensor.name.ends_with(".weight_packed") || tensor.name.ends_with(".weight_scale") ||
      tensor.name.ends_with(".weight_scale_inv") || tensor.name.ends_with(".qweight"))
    return already_quantized(tensor.where(), "by its name");
  if (is_fused_experts(tensor))
    return make_error(
        ErrorCode::kUnsupported,
        "{}: all experts in one tensor {}; expected one matrix an expert (…experts.E.gate_proj.weight): save "
        "the model with one linear layer an expert",
        tensor.where(), formats::shape_text(tensor.shape));
  if (is_quantizable_name(tensor.name) && tensor.shape.size() == 2 && !is_floating(tensor.dtype))
    return already_quantized(tensor.where(), formats::dtype_name(tensor.dtype));
  return {};
}

Status check_matrix(const TensorView& tensor, const QuantizeOptions& options) {
  const int64_t n = tensor.shape[0];
  const int64_t k = tensor.shape[1];
  if (auto status = check_group_size(k, options.group_size); !status) return status.error().in(tensor.where());
  if (n == 0 || k == 0 || k % 8 != 0)
    return make_error(ErrorCode::kInvalidArgument, "{}: expected K a positive multiple of 8 and N at least 1, found {}",
                      tensor.where(), formats::shape_text(tensor.shape));
  if (n % 8 != 0)
    options.log(LogLevel::kWarning,
                fmt::format("{}: N = {} is no multiple of 8: this engine does not run the result", tensor.where(), n));
  return {};
}

// Fills one tensor of the plan and what it becomes in the output.
Status plan_tensor(const TensorView& tensor, const formats::QuantizationConfig& rules, const QuantizeOptions& options,
                   PlannedShard& shard, FolderPlan& plan, std::vector<std::string>& ignore) {
  QD_TRY_STATUS(check_source(tensor));
  PlannedTensor planned;
  planned.source = &tensor;
  const bool is_matrix = tensor.shape.size() == 2 && tensor.name.ends_with(kWeight);
  const std::string module = is_matrix ? tensor.name.substr(0, tensor.name.size() - kWeight.size()) : "";
  if (is_matrix) {
    QD_TRY(const formats::QuantizationDecision decision, rules.decide(module));
    const bool is_ignored = decision.kind == formats::QuantizationKind::kUnquantized;
    planned.is_quantized = !is_ignored && is_quantizable_name(tensor.name);
    if (!planned.is_quantized) {
      plan.left_alone.push_back(
          fmt::format("{} ({})", module, is_ignored ? decision.rule : "no linear of a decoder layer"));
      // Whatever a loader might take for a linear layer is named.
      if (!is_ignored) ignore.push_back(module);
    }
  }
  plan.bytes_in += tensor.bytes.size();
  if (planned.is_quantized) {
    QD_TRY_STATUS(check_matrix(tensor, options));
    planned.module = module;
    const int64_t n = tensor.shape[0];
    const int64_t k = tensor.shape[1];
    const int64_t words = words_per_row(k);
    const int64_t scales = scales_per_row(k, options.group_size);
    shard.declarations.push_back({module + ".weight_packed", DType::kI32, {n, words}});
    shard.declarations.push_back({module + ".weight_scale", DType::kBF16, {n, scales}});
    shard.declarations.push_back({module + ".weight_shape", DType::kI64, {2}});
    plan.bytes_out += static_cast<uint64_t>(4 * n * words + 2 * n * scales + 16);
  } else {
    shard.declarations.push_back({tensor.name, tensor.dtype, tensor.shape});
    plan.bytes_out += tensor.bytes.size();
  }
  shard.tensors.push_back(std::move(planned));
  return {};
}

bool is_copied_file(const fs::directory_entry& entry) {
  std::error_code error;
  const std::string name = entry.path().filename().string();
  if (!entry.is_regular_file(error) || name.starts_with(".") || name == "config.json" ||
      name.ends_with(".index.json") || entry.file_size(error) > kMaxCopiedBytes)
    return false;
  const auto ends = [&](std::string_view ending) { return name.ends_with(ending); };
  const auto starts = [&](std::string_view start) { return name.starts_with(start); };
  return std::any_of(kCopiedEndings.begin(), kCopiedEndings.end(), ends) ||
         std::any_of(kCopiedNames.begin(), kCopiedNames.end(), starts);
}

}  // namespace

Json quantization_config(const QuantizeOptions& options, const std::vector<std::string>& ignore) {
  const bool is_channel = options.group_size == 0;
  const Json weights = {{"num_bits", 4},
                        {"type", "int"},
                        {"symmetric", true},
                        {"strategy", is_channel ? "channel" : "group"},
                        {"group_size", is_channel ? Json(nullptr) : Json(options.group_size)},
                        {"dynamic", false}};
  const Json activations = {{"num_bits", 8},       {"type", "float"},       {"symmetric", true},
                            {"strategy", "token"}, {"group_size", nullptr}, {"dynamic", true}};
  // The format stands in the group as well: loaders that see it only there would take int-quantized.
  const Json group = {{"format", "pack-quantized"},
                      {"targets", Json::array({"Linear"})},
                      {"weights", weights},
                      {"input_activations", activations},
                      {"output_activations", nullptr}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", group}}},
          {"ignore", ignore},
          {"kv_cache_scheme", nullptr},
          {"global_compression_ratio", nullptr},
          {"sparsity_config", Json::object()},
          {"transform_config", Json::object()},
          {"version", kFormatVersion}};
}

Status list_copied_files(const std::string& folder, std::vector<std::string>& files) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (is_copied_file(*entry)) files.push_back(entry->path().filename().string());
  if (error) return make_error(ErrorCode::kIo, "{}: cannot be listed: {}", folder, error.message());
  std::sort(files.begin(), files.end());
  return {};
}

const std::vector<std::string>& default_ignore() {
  static const std::vector<std::string> kDefault = {"lm_head", "re:.*mlp.gate$", "re:.*block_sparse_moe.gate$",
                                                    "re:.*shared_expert_gate$"};
  return kDefault;
}

bool is_quantizable_name(const std::string& tensor_name) {
  if (!tensor_name.ends_with(kWeight)) return false;
  const std::vector<std::string_view> parts =
      split_path(std::string_view(tensor_name).substr(0, tensor_name.size() - kWeight.size()));
  bool is_in_layer = false;
  bool is_in_expert = false;
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    is_in_layer = is_in_layer || (parts[i] == "layers" && is_number(parts[i + 1]));
    is_in_expert = is_in_expert || (parts[i] == "experts" && is_number(parts[i + 1]));
  }
  if (!is_in_layer) return false;
  const std::string_view last = parts.back();
  const auto is_last = [&](std::string_view name) { return name == last; };
  return last.ends_with(kProjectionSuffix) || std::any_of(kLinearNames.begin(), kLinearNames.end(), is_last) ||
         (is_in_expert && std::any_of(kExpertNames.begin(), kExpertNames.end(), is_last));
}

Result<FolderPlan> plan_folder(const formats::Checkpoint& checkpoint, const Json& config,
                               const QuantizeOptions& options) {
  const std::string config_file = checkpoint.folder() + "/config.json";
  if (!config.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: expected a JSON object, found {}", config_file,
                      formats::json_excerpt(config));
  for (const char* key : {"quantization_config", "compression_config"})
    if (config.contains(key) && !config[key].is_null())
      return already_quantized(config_file, fmt::format("it has '{}'", key));
  std::vector<std::string> ignore = default_ignore();
  ignore.insert(ignore.end(), options.ignore.begin(), options.ignore.end());
  // The decision comes from the config that the loaders will read, so that both agree.
  QD_TRY(const formats::QuantizationConfig rules,
         formats::QuantizationConfig::parse(quantization_config(options, ignore), "--ignore"));

  FolderPlan plan;
  int64_t num_quantized = 0;
  for (const std::string& file : checkpoint.shards()) plan.shards.emplace_back().file = file;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const auto place = std::find(checkpoint.shards().begin(), checkpoint.shards().end(), checkpoint.shard_of(name));
    PlannedShard& shard = plan.shards[static_cast<size_t>(place - checkpoint.shards().begin())];
    QD_TRY_STATUS(plan_tensor(tensor, rules, options, shard, plan, ignore));
    num_quantized += shard.tensors.back().is_quantized ? 1 : 0;
    ++plan.num_tensors;
  }
  if (num_quantized == 0)
    return make_error(
        ErrorCode::kInvalidArgument,
        "{}: no linear layer to quantise: expected names like model.layers.0.mlp.experts.0.down_proj.weight "
        "that no --ignore entry takes out",
        checkpoint.folder());
  plan.config = config;
  plan.config["quantization_config"] = quantization_config(options, ignore);
  QD_TRY_STATUS(list_copied_files(checkpoint.folder(), plan.copied_files));
  return plan;
}

}  // namespace quadrille::quantize
