// SPDX-License-Identifier: Apache-2.0
#include "model/device_shard.h"

#include <algorithm>
#include <string>

namespace quadrille::model {
namespace {

using layout::HeadShard;
using layout::ModelShard;
using layout::Range;

template <typename RangeOf>
std::vector<Range> ranges(const std::vector<ModelShard>& all, int64_t whole, const RangeOf& range_of) {
  if (all.empty()) return {{0, whole}};
  std::vector<Range> result;
  for (const ModelShard& shard : all) result.push_back(range_of(shard));
  return result;
}

// Each of the rank's KV heads is read by the same number of its query heads.
bool is_even(const HeadShard& shard) {
  const int64_t per_kv = shard.heads_per_kv;
  return shard.kv_heads.size() == 1 || (shard.heads.begin % per_kv == 0 && shard.heads.end % per_kv == 0);
}

std::string even_sizes(const ModelConfig& config) {
  std::string sizes;
  for (int ranks = 1; ranks <= static_cast<int>(std::min<int64_t>(config.num_heads, layout::kMaxRanks)); ++ranks) {
    const auto cut = layout::cut_heads(config.num_heads, config.num_kv_heads, ranks);
    if (!cut || !std::all_of(cut->begin(), cut->end(), is_even)) continue;
    sizes += (sizes.empty() ? "" : ", ") + std::to_string(ranks);
  }
  return sizes;
}

void cut_input(const layout::KShard& held, StackShape* matrix) {
  matrix->k = matrix->is_w4 ? held.k() : held.held();
}

void cut_mlp(const layout::MlpShard& held, std::optional<MlpShape>* mlp) {
  if (!*mlp) return;
  (*mlp)->width = held.columns.size();
  (*mlp)->gate_up.n = 2 * held.columns.size();
  cut_input(held.down, &(*mlp)->down);
  (*mlp)->down_offset = (*mlp)->down.is_w4 ? held.down.k_offset() : 0;
}

}  // namespace

std::vector<Range> DeviceShard::vocabulary(int64_t whole) const {
  return ranges(all, whole, [](const ModelShard& s) { return s.vocabulary; });
}
std::vector<Range> DeviceShard::q_rows(int64_t whole) const {
  return ranges(all, whole, [](const ModelShard& s) { return s.layers[0].attention.q_rows; });
}
std::vector<Range> DeviceShard::kv_rows(int64_t whole) const {
  return ranges(all, whole, [](const ModelShard& s) { return s.layers[0].attention.kv_rows; });
}

Status check_device_shard(const DeviceShard& shard, const ModelConfig& config) {
  for (size_t rank = 0; rank < shard.all.size(); ++rank) {
    const HeadShard& heads = shard.all[rank].layers[0].attention.heads;
    if (is_even(heads)) continue;
    return make_error(ErrorCode::kUnsupported,
                      "{} tensor-parallel ranks: rank {} would have query heads {} to {} of {} over KV heads {} to {}, "
                      "not the same number for each, which the attention of a GPU asks for; sizes where it comes out: "
                      "{}; on CPUs ('--device cpu') every size does",
                      shard.all.size(), rank, heads.heads.begin, heads.heads.end - 1, config.num_heads,
                      heads.kv_heads.begin, heads.kv_heads.end - 1, even_sizes(config));
  }
  return {};
}

ModelConfig rank_config(const ModelConfig& config, const DeviceShard& shard) {
  ModelConfig own = config;
  const ModelShard* const held = shard.own();
  if (held == nullptr) return own;
  own.num_heads = held->layers[0].attention.heads.heads.size();
  own.num_kv_heads = held->layers[0].attention.heads.kv_heads.size();
  own.expert_width = own.shared_width = own.dense_width = 0;
  for (const layout::LayerShard& layer : held->layers) {
    own.expert_width = std::max(own.expert_width, layer.experts.columns.size());
    own.shared_width = std::max(own.shared_width, layer.shared.columns.size());
    own.dense_width = std::max(own.dense_width, layer.dense.columns.size());
  }
  return own;
}

DeviceModelShape rank_shape(DeviceModelShape whole, const DeviceShard& shard) {
  const ModelShard* const held = shard.own();
  if (held == nullptr) return whole;
  whole.vocabulary = held->vocabulary.size();
  if (whole.lm_head) whole.lm_head->n = held->vocabulary.size();
  for (size_t l = 0; l < whole.layers.size(); ++l) {
    DeviceLayerShape& layer = whole.layers[l];
    const layout::LayerShard& cut = held->layers[l];
    layer.q.n = cut.attention.q_rows.size();
    layer.k.n = layer.v.n = cut.attention.kv_rows.size();
    cut_input(cut.attention.o, &layer.o);
    cut_mlp(cut.experts, &layer.experts);
    cut_mlp(cut.shared, &layer.shared);
    cut_mlp(cut.dense, &layer.dense);
  }
  return whole;
}

}  // namespace quadrille::model
