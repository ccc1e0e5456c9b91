// SPDX-License-Identifier: Apache-2.0
// The words of inspect --tp and --ep.
#include "cli/inspect_shards.h"

#include "cli/progress.h"
#include "cli/text_table.h"

namespace quadrille::cli {
namespace {

using layout::KShard;
using layout::LayerShard;
using layout::MlpShard;
using layout::ModelShard;
using layout::Range;
using model::RankShare;

// "192-383": the first and the last.
std::string range_text(const Range& r) {
  return r.size() == 1 ? std::to_string(r.begin) : fmt::format("{}-{}", r.begin, r.end - 1);
}

// Columns that the rank holds of a row-parallel matrix, and those of its matrix where zeros surround them.
std::string columns_text(const KShard& s) {
  const std::string held = range_text({s.k_begin, s.k_end});
  if (s.k() == s.held()) return held;
  return fmt::format("{} in {}", held, range_text({s.pad_begin, s.pad_end}));
}

struct MlpColumn {
  const char* heading;
  MlpShard LayerShard::*mlp;
};
constexpr MlpColumn kMlpColumns[] = {{"expert columns", &LayerShard::experts},
                                     {"shared columns", &LayerShard::shared},
                                     {"dense columns", &LayerShard::dense}};

// The feed-forward of that kind in the first layer that has one.
const MlpShard* first_mlp(const ModelShard& shard, MlpShard LayerShard::*mlp) {
  for (const LayerShard& layer : shard.layers) {
    if (!(layer.*mlp).empty()) return &(layer.*mlp);
  }
  return nullptr;
}

nlohmann::json range_json(const Range& r) {
  return {r.begin, r.end};
}

nlohmann::json k_json(const KShard& s) {
  nlohmann::json json = {{"held", {s.k_begin, s.k_end}},
                         {"matrix", {s.pad_begin, s.pad_end}},
                         {"offset", s.k_offset()},
                         {"groups", nullptr}};
  if (s.format.is_w4) json["groups"] = {s.group_begin(), s.group_end()};
  return json;
}

nlohmann::json mlp_json(const MlpShard& mlp) {
  if (mlp.empty()) return nullptr;
  return {{"columns", range_json(mlp.columns)}, {"down", k_json(mlp.down)}};
}

nlohmann::json layer_json(const LayerShard& layer) {
  const layout::AttentionShard& a = layer.attention;
  return {{"query_heads", range_json(a.heads.heads)},
          {"kv_heads", range_json(a.heads.kv_heads)},
          {"o_proj", k_json(a.o)},
          {"experts", mlp_json(layer.experts)},
          {"shared_expert", mlp_json(layer.shared)},
          {"dense", mlp_json(layer.dense)}};
}

// Layers in order of their first appearance, each with the numbers of those that are equal.
nlohmann::json layers_json(const std::vector<LayerShard>& layers) {
  std::vector<const LayerShard*> kinds;
  nlohmann::json json = nlohmann::json::array();
  for (size_t l = 0; l < layers.size(); ++l) {
    size_t kind = 0;
    while (kind < kinds.size() && !(*kinds[kind] == layers[l])) ++kind;
    if (kind == kinds.size()) {
      kinds.push_back(&layers[l]);
      json.push_back(layer_json(layers[l]));
      json.back()["layers"] = nlohmann::json::array();
    }
    json[kind]["layers"].push_back(l);
  }
  return json;
}

}  // namespace

std::string shares_text(const std::vector<RankShare>& shares) {
  const bool is_spread = shares.back().expert_rank > 0;
  const bool has_layers = !shares[0].shard.layers.empty();
  std::vector<std::string> headings = {">rank"};
  if (has_layers) headings.insert(headings.end(), {"query heads", "KV heads", "o_proj columns"});
  if (is_spread) headings.emplace_back("experts");
  for (const MlpColumn& column : kMlpColumns) {
    if (first_mlp(shares[0].shard, column.mlp) != nullptr) headings.emplace_back(column.heading);
  }
  headings.insert(headings.end(), {"vocabulary", ">weights", ">KV a position"});
  TextTable table(headings);
  for (const RankShare& share : shares) {
    std::vector<std::string> cells = {std::to_string(share.rank)};
    if (has_layers) {
      const layout::AttentionShard& a = share.shard.layers[0].attention;
      cells.insert(cells.end(), {range_text(a.heads.heads), range_text(a.heads.kv_heads), columns_text(a.o)});
    }
    if (is_spread) cells.push_back(share.experts.size() == 0 ? "none" : range_text(share.experts));
    for (const MlpColumn& column : kMlpColumns) {
      const MlpShard* mlp = first_mlp(share.shard, column.mlp);
      if (mlp != nullptr) cells.push_back(columns_text(mlp->down));
    }
    cells.push_back(range_text(share.shard.vocabulary));
    cells.push_back(bytes_text(static_cast<double>(share.weight_bytes)));
    cells.push_back(bytes_text(static_cast<double>(share.kv_bytes_per_position)));
    table.add_row(std::move(cells));
  }
  return table.text() +
         "\n'a-b in c-d': the rank's matrix has the columns c to d, zero outside of a to b. Norms, router and "
         "shared-expert gate\nare whole on every rank; tensor-parallel rank 0 adds the biases of o_proj and "
         "down_proj.\n" +
         (is_spread ? "The experts of a rank are those of every MoE layer; all else is the same on every "
                      "expert-parallel rank.\n"
                    : "");
}

nlohmann::json shares_json(const std::vector<RankShare>& shares) {
  nlohmann::json json = nlohmann::json::array();
  for (const RankShare& share : shares) {
    json.push_back({{"rank", share.rank},
                    {"tensor_rank", share.shard.rank},
                    {"expert_rank", share.expert_rank},
                    {"held_experts", range_json(share.experts)},
                    {"vocabulary", range_json(share.shard.vocabulary)},
                    {"layers", layers_json(share.shard.layers)},
                    {"adds_row_parallel_bias", share.shard.adds_row_parallel_bias()},
                    {"weight_bytes", share.weight_bytes},
                    {"kv_bytes_per_position", share.kv_bytes_per_position}});
  }
  return json;
}

}  // namespace quadrille::cli
