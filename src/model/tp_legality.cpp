// SPDX-License-Identifier: Apache-2.0
// Bytes and words about the shards that layout/shard_plan.h plans.
#include "model/tp_legality.h"

#include <algorithm>

#include "layout/bf16_lanes16.h"
#include "layout/w4_lanes16.h"
#include "model/kv_cache.h"
#include "moe/placement.h"

namespace quadrille::model {
namespace {

using layout::LayerShard;
using layout::ModelShard;

struct RankShape {
  int64_t n, k;
};

RankShape rank_shape(const PlannedModule& m, const ModelShard& shard) {
  if (m.cut == ModuleCut::kWhole) return {m.n, m.k};
  if (m.cut == ModuleCut::kVocabulary) return {shard.vocabulary.size(), m.k};
  const LayerShard& layer = shard.layers[static_cast<size_t>(m.layer)];
  switch (m.cut) {
    case ModuleCut::kQuery:
      return {layer.attention.q_rows.size(), m.k};
    case ModuleCut::kKeyValue:
      return {layer.attention.kv_rows.size(), m.k};
    case ModuleCut::kOutput:
      return {m.n, layer.attention.o.k()};
    case ModuleCut::kGateUp:
      return {2 * (layer.*m.mlp).columns.size(), m.k};
    default:
      return {m.n, (layer.*m.mlp).down.k()};
  }
}

bool is_row_parallel(ModuleCut cut) {
  return cut == ModuleCut::kOutput || cut == ModuleCut::kDown;
}

uint64_t prepared_bytes(const PlannedModule& m, const ModelShard& shard, int64_t count) {
  const auto [n, k] = rank_shape(m, shard);
  const bool has_bias = m.has_bias && (!is_row_parallel(m.cut) || shard.adds_row_parallel_bias());
  int64_t bytes = has_bias ? 4 * n : 0;
  if (m.is_w4) {
    bytes += 4 * layout::W4Lanes16{n, k}.num_words();
    bytes += 2 * layout::ScaleLanes16{n, layout::num_groups(k, m.group_size)}.size();
  } else {
    bytes += 2 * (m.row_major ? n * k : layout::Bf16Lanes16{n, k}.size());
  }
  return static_cast<uint64_t>(count * bytes);
}

bool is_experts(const PlannedModule& m) {
  return (m.cut == ModuleCut::kGateUp || m.cut == ModuleCut::kDown) && m.mlp == &LayerShard::experts;
}

// Those of each rank: a model has as many in each of its MoE layers.
Result<std::vector<layout::Range>> held_experts(const PlannedModel& model, int ranks) {
  std::vector<layout::Range> held(static_cast<size_t>(ranks));
  const auto found = std::find_if(model.modules.begin(), model.modules.end(), is_experts);
  if (found == model.modules.end()) return held;
  QD_TRY(const moe::Placement placement, moe::Placement::even(found->count, ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const std::span<const int32_t> slots = placement.slots(rank);
    if (!slots.empty()) held[static_cast<size_t>(rank)] = {slots.front(), slots.back() + 1};
  }
  return held;
}

RankShare share_of(const PlannedModel& model, ModelShard shard, int expert_rank, layout::Range experts) {
  RankShare share;
  share.expert_rank = expert_rank;
  share.rank = expert_rank * shard.ranks + shard.rank;
  share.experts = experts;
  for (const PlannedModule& m : model.modules) {
    share.weight_bytes += prepared_bytes(m, shard, is_experts(m) ? share.experts.size() : m.count);
  }
  if (!shard.layers.empty()) {
    share.kv_bytes_per_position = KvCache::bytes_per_page(static_cast<int64_t>(shard.layers.size()),
                                                          shard.layers[0].attention.heads.kv_heads.size(),
                                                          model.shape.head_dim, kernels::KvType::kBf16) /
                                  kPagePositions;
  }
  share.shard = std::move(shard);
  return share;
}

int largest_size(const layout::ModelShape& shape) {
  int ranks = layout::kMaxRanks;
  while (ranks > 1 && !layout::plan_shards(shape, ranks)) --ranks;
  return ranks;
}

// Smallest and largest of what the ranks get.
struct Spread {
  int64_t least, most;
};
template <typename Size>
Spread spread_of(const std::vector<ModelShard>& plan, Size&& size) {
  Spread spread{size(plan[0]), size(plan[0])};
  for (const ModelShard& shard : plan) {
    spread.least = std::min(spread.least, size(shard));
    spread.most = std::max(spread.most, size(shard));
  }
  return spread;
}

void note_uneven(const Spread& spread, int64_t whole, const char* what, TpVerdict* verdict) {
  if (spread.least == spread.most) return;
  verdict->even = false;
  verdict->reasons.push_back(fmt::format("{} to {} of {} {} a rank", spread.least, spread.most, whole, what));
}

void add_once(std::string reason, TpVerdict* verdict) {
  auto& reasons = verdict->reasons;
  if (std::find(reasons.begin(), reasons.end(), reason) == reasons.end()) reasons.push_back(std::move(reason));
}

void note_attention(const PlannedModel& model, const std::vector<ModelShard>& plan, TpVerdict* verdict) {
  if (model.shape.layers.empty()) return;
  const auto kv_heads = [](const ModelShard& s) { return s.layers[0].attention.heads.kv_heads.size(); };
  note_uneven(spread_of(plan, [](const ModelShard& s) { return s.layers[0].attention.heads.heads.size(); }),
              model.shape.num_heads, "query heads", verdict);
  note_uneven(spread_of(plan, kv_heads), model.shape.num_kv_heads, "KV heads", verdict);
  int64_t held = 0;
  for (const ModelShard& shard : plan) held += kv_heads(shard);
  if (held > model.shape.num_kv_heads) {
    verdict->reasons.push_back(fmt::format("{} KV heads are held {} times in all", model.shape.num_kv_heads, held));
  }
  if (model.norm_spans_heads && verdict->ranks > 1) {
    verdict->reasons.emplace_back("q and k are normed over all heads: the ranks exchange their rows");
  }
}

// Whether a border between two ranks lies inside a group.
bool cuts_group(const layout::KShard& shard) {
  const int64_t group = shard.format.is_w4 ? shard.format.group_size : 0;
  return group != 0 && shard.k_begin % group != 0;
}

struct NamedMlp {
  const char* name;
  layout::MlpShard LayerShard::*mlp;
};
constexpr NamedMlp kMlps[] = {
    {"expert", &LayerShard::experts}, {"shared-expert", &LayerShard::shared}, {"dense", &LayerShard::dense}};

void note_width(const std::vector<ModelShard>& plan, size_t l, const NamedMlp& named, TpVerdict* verdict) {
  const layout::MlpShard& first = plan[0].layers[l].*named.mlp;
  if (first.empty()) return;
  const Spread spread = spread_of(plan, [&](const ModelShard& s) { return (s.layers[l].*named.mlp).columns.size(); });
  if (spread.least != spread.most) {
    verdict->even = false;
    add_once(
        fmt::format("{} to {} of {} {} columns a rank", spread.least, spread.most, first.down.format.k, named.name),
        verdict);
  }
  for (const ModelShard& shard : plan) {
    if (!cuts_group((shard.layers[l].*named.mlp).down)) continue;
    add_once(fmt::format("{} columns are cut inside groups of {}", named.name, first.down.format.group_size), verdict);
  }
}

TpVerdict verdict_of(const PlannedModel& model, int ranks) {
  TpVerdict verdict;
  verdict.ranks = ranks;
  auto plan = layout::plan_shards(model.shape, ranks);
  if (!plan) {
    verdict.legal = verdict.even = false;
    verdict.reasons.push_back(plan.error().message);
    return verdict;
  }
  note_attention(model, *plan, &verdict);
  for (size_t l = 0; l < model.shape.layers.size(); ++l) {
    for (const ModelShard& shard : *plan) {
      const layout::KShard& o = shard.layers[l].attention.o;
      if (cuts_group(o)) add_once(fmt::format("o_proj is cut inside groups of {}", o.format.group_size), &verdict);
    }
    for (const NamedMlp& named : kMlps) note_width(*plan, l, named, &verdict);
  }
  note_uneven(spread_of(*plan, [](const ModelShard& s) { return s.vocabulary.size(); }), model.shape.vocabulary,
              "rows of the vocabulary", &verdict);
  return verdict;
}

}  // namespace

Result<std::vector<RankShare>> rank_shares(const PlannedModel& model, int ranks, int expert_ranks) {
  auto plan = layout::plan_shards(model.shape, ranks);
  if (!plan) {
    const int largest = largest_size(model.shape);
    return make_error(plan.error().code, "{} (all of this model: {})", plan.error().message,
                      largest == 1 ? "1 rank alone" : fmt::format("1..{}", largest));
  }
  std::vector<RankShare> shares;
  QD_TRY(const std::vector<layout::Range> experts, held_experts(model, expert_ranks));
  for (int e = 0; e < expert_ranks; ++e) {
    for (const ModelShard& shard : *plan) shares.push_back(share_of(model, shard, e, experts[static_cast<size_t>(e)]));
  }
  return shares;
}

std::vector<TpVerdict> legal_tp(const PlannedModel& model, int max_ranks) {
  std::vector<TpVerdict> verdicts;
  for (int ranks = 1; ranks <= max_ranks; ++ranks) verdicts.push_back(verdict_of(model, ranks));
  return verdicts;
}

}  // namespace quadrille::model
