// SPDX-License-Identifier: Apache-2.0
// The shard plan of a model: what each tensor-parallel rank gets, in heads, columns, rows and bytes, which sizes are
// legal, and why one is not. Made from an inventory by the loader and by inspect; the cuts are those of
// layout/shard_plan.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "layout/shard_plan.h"
#include "model/config.h"

namespace quadrille::model {

struct ModelSources;

// How a module is cut.
enum class ModuleCut {
  kWhole,       // norms, router, shared-expert gate: on every rank
  kVocabulary,  // embedding and head: rows
  kQuery,       // q_proj: rows of the rank's query heads
  kKeyValue,    // k_proj, v_proj: rows of the KV heads that those read
  kOutput,      // o_proj: columns of the rank's query heads
  kGateUp,      // gate and up, stacked [2 * width, hidden]: rows of each
  kDown,        // columns
};

// A module as the plan sees it; the experts of a layer are one, with a count.
struct PlannedModule {
  ModuleCut cut = ModuleCut::kWhole;
  int64_t layer = 0;
  layout::MlpShard layout::LayerShard::*mlp = nullptr;  // of kGateUp and kDown: experts, shared or dense
  int64_t count = 1;
  int64_t n = 0, k = 0;
  bool is_w4 = false;
  int64_t group_size = 0;
  bool has_bias = false;
  bool row_major =
      false;  // kept as bf16 rows (norms, routers, an embedding that is not the head), else for the kernels
};

struct PlannedModel {
  layout::ModelShape shape;
  std::vector<PlannedModule> modules;
  bool norm_spans_heads = false;  // q and k are normed over all heads: the ranks need each other's rows
};

PlannedModel planned_model(const ModelSources& sources, const ModelConfig& config);

// What one rank gets.
struct RankShare {
  layout::ModelShard shard;
  int rank = 0;                        // of all: expert_rank * tensor-parallel ranks + shard.rank
  int expert_rank = 0;                 // of the expert-parallel ones
  layout::Range experts;               // of every MoE layer, by moe::Placement::even(); one expert rank: all
  uint64_t weight_bytes = 0;           // prepared for the CPU tables in `exact`, padding included
  uint64_t kv_bytes_per_position = 0;  // bf16 cache of the rank's KV heads
};

// The shares of all ranks of a grid, in rank order; more expert ranks than experts are fine. Errors: those of
// layout::plan_shards(), and which sizes this model can be cut for.
Result<std::vector<RankShare>> rank_shares(const PlannedModel& model, int ranks, int expert_ranks = 1);

struct TpVerdict {
  int ranks = 1;
  bool legal = true;
  bool even = true;                  // every rank gets the same
  std::vector<std::string> reasons;  // why not legal, or what is uneven, held by several ranks, or cut through a group
};

// Sizes 1..max_ranks.
std::vector<TpVerdict> legal_tp(const PlannedModel& model, int max_ranks = 8);

}  // namespace quadrille::model
