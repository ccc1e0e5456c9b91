// SPDX-License-Identifier: Apache-2.0
#include "session/folder_json.h"

#include "session/names.h"

namespace quadrille::session {
namespace {

nlohmann::json sums_json(const quantize::ErrorSums& sums) {
  return {{"weights", sums.count},
          {"relative_rms_error", sums.relative_rms()},
          {"max_error", sums.max_error},
          {"max_abs", sums.max_abs},
          {"clipped", sums.clipped}};
}

}  // namespace

std::string group_text(int64_t group_size) {
  return group_size == 0 ? "channel" : std::to_string(group_size);
}

const char* scoring_text(moe::Scoring scoring) {
  switch (scoring) {
    case moe::Scoring::kSoftmaxBeforeTopK:
      return "softmax, then top-k";
    case moe::Scoring::kSoftmaxAfterTopK:
      return "top-k, then softmax";
    case moe::Scoring::kSigmoid:
      return "sigmoid";
  }
  return "";
}

nlohmann::json verdicts_json(const std::vector<model::TpVerdict>& verdicts) {
  nlohmann::json list = nlohmann::json::array();
  for (const model::TpVerdict& verdict : verdicts) {
    list.push_back(
        {{"ranks", verdict.ranks}, {"legal", verdict.legal}, {"even", verdict.even}, {"reasons", verdict.reasons}});
  }
  return list;
}

nlohmann::json config_json(const model::ModelConfig& config) {
  return {{"family", config.family},
          {"architecture", config.architecture},
          {"hidden_size", config.hidden_size},
          {"num_layers", config.num_layers},
          {"num_moe_layers", config.num_moe_layers()},
          {"num_heads", config.num_heads},
          {"num_kv_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"vocab_size", config.vocab_size},
          {"max_positions", config.max_positions},
          {"tie_word_embeddings", config.tie_word_embeddings},
          {"dense_width", config.dense_width},
          {"num_experts", config.router.num_experts},
          {"top_k", config.router.top_k},
          {"expert_width", config.expert_width},
          {"shared_width", config.shared_width},
          {"scoring", scoring_text(config.router.scoring)},
          {"renormalise", config.router.renormalise},
          {"routed_scaling", config.router.routed_scaling},
          {"rope", {{"type", config.rope.type}, {"theta", config.rope.theta}, {"factor", config.rope.factor}}},
          {"eos_token_ids", config.eos_token_ids}};
}

nlohmann::json description_json(const model::ModelDescription& description) {
  nlohmann::json json = {{"folder", description.folder},
                         {"config", config_json(description.config)},
                         {"quantization_format", description.quantization_format},
                         {"parameters", description.parameters},
                         {"active_parameters", description.active_parameters},
                         {"disk_bytes", description.disk_bytes},
                         {"weight_memory_bytes", description.weight_memory_bytes},
                         {"kv_bytes_per_position", description.kv_bytes_per_position},
                         {"files", description.shards},
                         {"unused_tensors", description.unused_tensors},
                         {"modules", nlohmann::json::array()}};
  for (const model::ModuleDescription& module : description.modules) {
    const bool is_quantized = module.decision.kind != formats::QuantizationKind::kUnquantized;
    json["modules"].push_back({{"path", module.path},
                               {"kind", module.kind},
                               {"shape", module.shape},
                               {"storage", module.storage},
                               {"quantization", formats::quantization_kind_name(module.decision.kind)},
                               {"group_size", is_quantized ? nlohmann::json(group_text(module.decision.group_size))
                                                           : nlohmann::json(nullptr)},
                               {"rule", module.decision.rule},
                               {"disk_bytes", module.disk_bytes},
                               {"parameters", module.parameters}});
  }
  json["tensor_parallel"] = verdicts_json(description.tensor_parallel);
  return json;
}

nlohmann::json quantize_json(const std::string& in, const std::string& out, const quantize::QuantizeOptions& options,
                             const quantize::QuantizeReport& report) {
  nlohmann::json json = {{"in", in},
                         {"out", out},
                         {"group_size", group_text(options.group_size)},
                         {"quotient", options.quotient == quantize::Quotient::kBf16 ? "bf16" : "f32"},
                         {"total", sums_json(report.errors.total())},
                         {"by_kind", nlohmann::json::object()},
                         {"tensors", nlohmann::json::array()},
                         {"left_alone", report.left_alone},
                         {"files", report.files},
                         {"bytes_in", report.bytes_in},
                         {"bytes_out", report.bytes_out},
                         {"seconds", report.seconds}};
  for (const auto& [kind, sums] : report.errors.by_kind()) json["by_kind"][kind] = sums_json(sums);
  for (const quantize::TensorError& tensor : report.errors.tensors) {
    nlohmann::json entry = sums_json(tensor.sums);
    entry["name"] = tensor.name;
    entry["shape"] = tensor.shape;
    json["tensors"].push_back(std::move(entry));
  }
  return json;
}

nlohmann::json prepare_json(const std::string& in, const std::string& out, kernels::Numerics numerics,
                            const model::PrepareReport& report) {
  return {{"in", in},
          {"out", out},
          {"numerics", numerics_name(numerics)},
          {"files", report.files},
          {"notes", report.notes},
          {"bytes_in", report.bytes_in},
          {"bytes_out", report.bytes_out},
          {"seconds", report.seconds}};
}

}  // namespace quadrille::session
