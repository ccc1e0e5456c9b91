// SPDX-License-Identifier: Apache-2.0
// inspect's view of a folder: the inventory in plain values.
#include "model/description.h"
#include "model/inventory.h"
#include "model/prepared_sources.h"
#include "model/prepared_weights.h"

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

// Adds what follows from the modules; `storage` and `bytes` of each come from where it is stored.
template <typename Storage, typename Bytes>
Status add_modules(const ModelSources& sources, const Storage& storage, const Bytes& bytes,
                   ModelDescription* described) {
  ModelDescription& description = *described;
  const ModelConfig& config = description.config;
  for (const ModuleSource* source : sources.modules()) {
    const int64_t parameters = num_parameters(*source);
    description.modules.push_back({source->path, module_kind_name(source->kind), source->shape, source->decision,
                                   storage(*source), bytes(*source), parameters});
    description.parameters += parameters;
    description.disk_bytes += bytes(*source);
    // A token reads its experts alone and one row of the embedding.
    if (source->kind == ModuleKind::kExpert) {
      continue;
    }
    if (source->kind != ModuleKind::kEmbedding || config.tie_word_embeddings)
      description.active_parameters += parameters;
  }
  const int64_t one_expert = 3 * config.hidden_size * config.expert_width;
  description.active_parameters += config.num_moe_layers() * config.router.top_k * one_expert;
  description.plan = planned_model(sources, config);
  QD_TRY(const std::vector<RankShare> whole, rank_shares(description.plan, 1));
  description.weight_memory_bytes = whole[0].weight_bytes;
  description.kv_bytes_per_position = whole[0].kv_bytes_per_position;
  description.tensor_parallel = legal_tp(description.plan);
  return {};
}

Status describe_checkpoint(const LogSink& log, ModelDescription* description) {
  const std::string& folder = description->folder;
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(folder));
  QD_TRY(const Inventory inventory, take_inventory(folder, raw, description->config, log));
  if (inventory.quantization) description->quantization_format = inventory.quantization->format();
  description->unused_tensors = inventory.unused_tensors;
  description->shards = inventory.checkpoint.shards();
  return add_modules(
      inventory, storage_text, [](const ModuleSource& source) { return source.disk_bytes(); }, description);
}

// A prepared folder is cut for one tensor-parallel rank.
Status describe_prepared(ModelDescription* description) {
  ThreadPool pool(1);
  PreparedOptions options;
  options.pool = &pool;
  QD_TRY(const PreparedWeights prepared, load_prepared(description->folder, description->config, options));
  description->quantization_format = fmt::format("prepared for {}", arithmetic_name(prepared.numerics));
  description->shards = {formats::kPreparedFileName};
  const ModelSources sources = prepared_sources(prepared.weights, description->config);
  QD_TRY_STATUS(add_modules(sources, prepared_storage, prepared_bytes, description));
  for (TpVerdict& verdict : description->tensor_parallel) {
    if (verdict.ranks == 1) continue;
    verdict = {
        verdict.ranks, false, false, {"a prepared folder is for one rank: give the checkpoint it was made from"}};
  }
  return {};
}

}  // namespace

Result<ModelDescription> describe_model(const std::string& folder, const LogSink& log) {
  ModelDescription description;
  description.folder = folder;
  QD_TRY(description.config, read_model_config(folder));
  QD_TRY_STATUS(formats::is_prepared_folder(folder) ? describe_prepared(&description)
                                                    : describe_checkpoint(log, &description));
  return description;
}

}  // namespace quadrille::model
