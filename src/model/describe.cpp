// SPDX-License-Identifier: Apache-2.0
// inspect's view of a folder: the inventory in plain values.
#include "model/description.h"
#include "model/inventory.h"

namespace quadrille::model {
namespace {

std::string storage_text(const ModuleSource& source) {
  const char* dtype = formats::dtype_name(source.weight->dtype);
  if (!source.quantised()) return dtype;
  return fmt::format("{} {}", dtype, formats::weight_format_name(source.decision.format));
}

int64_t num_parameters(const ModuleSource& source) {
  return source.n() * source.k() + (source.bias != nullptr ? source.n() : 0);
}

}  // namespace

Result<ModelDescription> describe_model(const std::string& folder, const LogSink& log) {
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(folder));
  ModelDescription description;
  description.folder = folder;
  QD_TRY(description.config, read_model_config(folder));
  const ModelConfig& config = description.config;
  QD_TRY(const Inventory inventory, take_inventory(folder, raw, config, log));
  if (inventory.quantization) description.quantization_format = inventory.quantization->format();
  description.unused_tensors = inventory.unused_tensors;
  description.shards = inventory.checkpoint.shards();
  for (const ModuleSource* source : inventory.modules()) {
    const int64_t parameters = num_parameters(*source);
    description.modules.push_back({source->path, module_kind_name(source->kind), source->shape, source->decision,
                                   storage_text(*source), source->disk_bytes(), parameters});
    description.parameters += parameters;
    description.disk_bytes += source->disk_bytes();
    // A token reads its experts alone and one row of the embedding.
    if (source->kind == ModuleKind::kExpert) {
      continue;
    }
    if (source->kind != ModuleKind::kEmbedding || config.tie_word_embeddings)
      description.active_parameters += parameters;
  }
  const int64_t one_expert = 3 * config.hidden_size * config.expert_width;
  description.active_parameters += config.num_moe_layers() * config.router.top_k * one_expert;
  description.plan = planned_model(inventory, config);
  QD_TRY(const std::vector<RankShare> whole, rank_shares(description.plan, 1));
  description.weight_memory_bytes = whole[0].weight_bytes;
  description.kv_bytes_per_position = whole[0].kv_bytes_per_position;
  description.tensor_parallel = legal_tp(description.plan);
  return description;
}

}  // namespace quadrille::model
