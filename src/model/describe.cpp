// SPDX-License-Identifier: Apache-2.0
// inspect's view of a folder: the inventory in plain values.
#include "layout/bf16_lanes16.h"
#include "layout/w4_lanes16.h"
#include "model/description.h"
#include "model/inventory.h"
#include "model/kv_cache.h"

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

// In the layout of the CPU tables, `exact`. Halves of gate and up are stacked before padding; counted apart here, which
// is the same for widths in multiples of 16.
uint64_t prepared_bytes(const ModuleSource& source) {
  const int64_t bias = source.bias != nullptr ? 4 * source.n() : 0;
  if (source.quantised()) {
    const layout::W4Lanes16 codes{source.n(), source.k()};
    const layout::ScaleLanes16 scales{source.n(), layout::num_groups(source.k(), source.decision.group_size)};
    return static_cast<uint64_t>(4 * codes.num_words() + 2 * scales.size() + bias);
  }
  const bool row_major =
      source.kind == ModuleKind::kNorm || source.kind == ModuleKind::kRouter || source.kind == ModuleKind::kEmbedding;
  if (row_major) return static_cast<uint64_t>(2 * source.n() * source.k());
  return static_cast<uint64_t>(2 * layout::Bf16Lanes16{source.n(), source.k()}.size() + bias);
}

int64_t group_of(const ModuleSource& source) {
  return source.quantised() ? source.decision.group_size : 0;
}

// Row-parallel matrices with distinct cuts, each once.
void add_matrix(const std::string& name, const ModuleSource& down, std::vector<RowParallelMatrix>* matrices) {
  for (const RowParallelMatrix& known : *matrices) {
    if (known.name == name && known.k == down.k() && known.group_size == group_of(down)) return;
  }
  matrices->push_back({name, down.k(), group_of(down)});
}

std::vector<TpVerdict> verdicts(const Inventory& inventory, const ModelConfig& config) {
  std::vector<RowParallelMatrix> matrices;
  int64_t o_proj_group = 0;
  for (const LayerSources& layer : inventory.layers) {
    o_proj_group = std::max(o_proj_group, group_of(layer.o));
    if (!layer.experts.empty()) add_matrix("experts.down_proj", layer.experts[0].down, &matrices);
    if (layer.shared) add_matrix("shared_expert.down_proj", layer.shared->down, &matrices);
    if (layer.dense) add_matrix("mlp.down_proj", layer.dense->down, &matrices);
  }
  return tp_verdicts(config, o_proj_group, matrices);
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
    description.weight_memory_bytes += prepared_bytes(*source);
    // A token reads its experts alone and one row of the embedding.
    if (source->kind == ModuleKind::kExpert) {
      continue;
    }
    if (source->kind != ModuleKind::kEmbedding || config.tie_word_embeddings)
      description.active_parameters += parameters;
  }
  const int64_t one_expert = 3 * config.hidden_size * config.expert_width;
  description.active_parameters += config.num_moe_layers() * config.router.top_k * one_expert;
  description.kv_bytes_per_position =
      KvCache::bytes_per_page(config.num_layers, config.num_kv_heads, config.head_dim, kernels::KvType::kBf16) /
      kPagePositions;
  description.tensor_parallel = verdicts(inventory, config);
  return description;
}

}  // namespace quadrille::model
