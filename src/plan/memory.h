// SPDX-License-Identifier: Apache-2.0
// Where the ranks of a grid stand and what each holds in memory: whole numbers alone. The largest rank counts.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "plan/shape.h"

namespace quadrille::plan {

// tp * ep ranks: rank = ep_index * tp + tp_index. The experts of a layer are placed over the ep groups, the first ones
// hold one more where they do not divide; everything else of the model is cut over the tp ranks of each group.
struct PlanGrid {
  int tp = 1, ep = 1;
  int gpus_per_host = 8;
  friend bool operator==(const PlanGrid&, const PlanGrid&) = default;
  int ranks() const { return tp * ep; }
  int hosts() const { return (ranks() + gpus_per_host - 1) / gpus_per_host; }
  // Of a rank's tp - 1 (ep - 1) partners, how many stand on other hosts; the largest over ranks.
  int tp_partners_outside() const;
  int ep_partners_outside() const;
};

enum class AttentionOver {
  kDivided,     // each ep group has sequences of its own: their tokens, caches and heads
  kReplicated,  // every ep group computes attention for all tokens; for the experts each takes a slice of the tokens
};

// One step: tokens over all ranks together.
struct PlanLoad {
  int64_t decode_tokens = 256;  // sequences that decode one token each
  int64_t context = 4096;       // positions that each of them has
  int64_t prefill_tokens = 4096;
  AttentionOver attention = AttentionOver::kDivided;

  // Tokens for which an ep group computes attention.
  int64_t group_tokens(int64_t tokens, int ep) const;
  // Tokens whose routed experts an ep group asks for.
  static int64_t slice_tokens(int64_t tokens, int ep) { return (tokens + ep - 1) / ep; }
};

// Tokens of a step, over all ranks, and rows of the head that they ask for.
struct StepTokens {
  int64_t all = 0;
  int64_t logits = 0;
};

// Which layout a matrix is prepared in.
enum class PlanLayout {
  kHopper64,  // layout/w4_hopper64.h; bf16 as rows
  kLanes16,   // of the CPU tables
};

struct RankWeights {
  std::array<int64_t, kNumPlanParts> bytes{};  // by PlanPart
  int64_t total() const;
};
// What `shard` of ep group `ep_index` holds.
RankWeights rank_weights(const std::vector<PlanMatrix>& matrices, const layout::ModelShard& shard, const PlanGrid& grid,
                         int ep_index, PlanLayout layout = PlanLayout::kHopper64);

struct RankMemory {
  layout::ModelShard shard;
  RankWeights weights;
  int64_t kv_bytes_per_token = 0;  // all layers, bf16; every layer keeps every position, also one with a window
  int64_t kv_bytes = 0;            // of the rank's sequences, in pages of 64 positions
  int64_t activation_bytes = 0;    // of the larger of the two steps
  int64_t total() const { return weights.total() + kv_bytes + activation_bytes; }
};

// The rank of a grid that holds most; its workspaces are those of the busiest rank (rank_load()). Errors: those of
// layout::plan_shards(); kUnsupported where there are fewer experts than ep groups.
Result<RankMemory> largest_rank(const PlanShape& shape, const PlanGrid& grid, const PlanLoad& load);
Status check_grid(const PlanShape& shape, const PlanGrid& grid);
// Experts that ep group `ep_index` holds.
int64_t experts_here(int64_t experts, const PlanGrid& grid, int ep_index);

// The grids of that many GPUs, legal or not, by tp.
std::vector<PlanGrid> grids_of(int gpus, int gpus_per_host);

}  // namespace quadrille::plan
