// SPDX-License-Identifier: Apache-2.0
// Bytes by the same size functions that prepare weights and lay out workspaces.
#include "plan/memory.h"

#include <algorithm>
#include <numeric>

#include "layout/bf16_lanes16.h"
#include "layout/kv_page.h"
#include "layout/w4_hopper64.h"
#include "layout/w4_lanes16.h"
#include "moe/device_layer.h"
#include "plan/routing.h"

namespace quadrille::plan {
namespace {

using layout::LayerShard;
using layout::ModelShard;

// Received parts of a collective wait in it (parallel/nccl.h).
constexpr int64_t kScratchBytes = int64_t{8} << 20;

struct Rows {
  int64_t n, k;
};

Rows rank_rows(const PlanMatrix& m, const ModelShard& shard) {
  if (m.cut == PlanCut::kWhole) return {m.n, m.k};
  if (m.cut == PlanCut::kVocabulary) return {shard.vocabulary.size(), m.k};
  const LayerShard& layer = shard.layers[static_cast<size_t>(m.layer)];
  switch (m.cut) {
    case PlanCut::kHeads:
      return {layer.attention.heads.heads.size() * m.rows_per_head, m.k};
    case PlanCut::kKvHeads:
      return {layer.attention.heads.kv_heads.size() * m.rows_per_head, m.k};
    case PlanCut::kOutput:
      return {m.n, layer.attention.o.k()};
    case PlanCut::kGateUp:
      return {2 * (layer.*m.mlp).columns.size(), m.k};
    default:
      return {m.n, (layer.*m.mlp).down.k()};
  }
}

bool is_row_parallel(PlanCut cut) {
  return cut == PlanCut::kOutput || cut == PlanCut::kDown;
}

int64_t hopper_bytes(const PlanMatrix& m, const Rows& rows, bool has_bias) {
  if (!m.form.is_w4) return rows.n * rows.k * (m.is_f32 ? 4 : 2) + (has_bias ? 4 * rows.n : 0);
  const layout::W4Hopper64 w{rows.n, rows.k, m.form.group_size, false};
  return w.num_bytes() + (has_bias ? 4 * w.padded_n() : 0);
}

int64_t lanes_bytes(const PlanMatrix& m, const Rows& rows, bool has_bias) {
  const int64_t bias = has_bias ? 4 * rows.n : 0;
  if (m.is_f32) return 4 * rows.n * rows.k + bias;
  if (!m.form.is_w4) return 2 * (m.row_major ? rows.n * rows.k : layout::Bf16Lanes16{rows.n, rows.k}.size()) + bias;
  return 4 * layout::W4Lanes16{rows.n, rows.k}.num_words() +
         2 * layout::ScaleLanes16{rows.n, layout::num_groups(rows.k, m.form.group_size)}.size() + bias;
}

int64_t matrix_bytes(const PlanMatrix& m, const ModelShard& shard, PlanLayout layout) {
  const Rows rows = rank_rows(m, shard);
  const bool has_bias = m.has_bias && (!is_row_parallel(m.cut) || shard.adds_row_parallel_bias());
  return layout == PlanLayout::kHopper64 ? hopper_bytes(m, rows, has_bias) : lanes_bytes(m, rows, has_bias);
}

int64_t kv_heads_of(const PlanShape& shape, const ModelShard& shard) {
  return shard.layers.empty() ? shape.config.num_kv_heads : shard.layers[0].attention.heads.kv_heads.size();
}

// The device layer's own sizes, asked with the shape of this rank. `rows`: routes that are computed here.
int64_t moe_workspace(const PlanShape& shape, const ModelShard& shard, const PlanGrid& grid, int64_t rows,
                      int64_t tokens) {
  const auto& config = shape.config;
  const auto is_moe = std::find_if(config.layers.begin(), config.layers.end(), [](const auto& l) { return l.is_moe; });
  if (is_moe == config.layers.end()) return 0;
  const LayerShard& layer = shard.layers[static_cast<size_t>(is_moe - config.layers.begin())];
  moe::DeviceMoeLayer device;
  device.rule.num_experts = config.router.num_experts;
  device.rule.top_k = 1;
  device.experts.hidden = config.hidden_size;
  device.experts.width = layer.experts.down.k();
  device.experts.gate_up.num_experts = experts_here(config.router.num_experts, grid, 0);
  int64_t bytes = static_cast<int64_t>(moe::workspace_bytes(device, rows));
  if (config.shared_width == 0) return bytes;
  moe::DeviceMoeLayer shared = device;
  shared.experts.width = layer.shared.down.k();
  shared.experts.gate_up.num_experts = 1;
  return bytes + static_cast<int64_t>(moe::workspace_bytes(shared, tokens));
}

int64_t activation_bytes(const PlanShape& shape, const ModelShard& shard, const PlanGrid& grid, const PlanLoad& load,
                         const StepTokens& step) {
  const auto& config = shape.config;
  const int64_t hidden = config.hidden_size;
  const int64_t tokens = load.group_tokens(step.all, grid.ep);
  const int64_t slice = grid.ep == 1 ? tokens : PlanLoad::slice_tokens(step.all, grid.ep);
  int64_t rows = slice * config.router.top_k, exchanged = 0;
  if (grid.ep > 1) {
    const double busiest = rank_load(config.router, grid.ep, step.all).busiest;
    rows = static_cast<int64_t>(std::ceil(busiest));
    const int64_t way_out = hidden + 4, way_back = hidden * (grid.tp > 1 ? 4 : 2);
    exchanged = (rows + slice * config.router.top_k) * (way_out + 8 + way_back);  // 8: expert and row of a route
  }
  int64_t attention = 0;
  if (!shard.layers.empty()) {
    const auto& a = shard.layers[0].attention;
    const int64_t query = shape.latent ? shape.latent->nope_dim + shape.latent->rope_dim : config.head_dim;
    int64_t values = a.heads.heads.size() * (query + config.head_dim) + cache_values(shape, a.heads.kv_heads.size());
    if (shape.latent) values += shape.latent->q_rank + a.heads.heads.size() * shape.latent->kv_rank * 2;
    attention = tokens * values * 2;
    const moe::DeviceLinear in{.n = 8, .k = hidden}, out{.n = hidden, .k = a.o.k()};
    attention +=
        static_cast<int64_t>(moe::linear_workspace_bytes(in, tokens) + moe::linear_workspace_bytes(out, tokens));
  }
  const int64_t residual = tokens * hidden * 2 * 3;  // the stream, its norm, the block's output
  const int64_t partial = grid.tp > 1 ? tokens * hidden * 4 : 0;
  const int64_t logits = load.group_tokens(step.logits, grid.ep) * (shard.vocabulary.size() + config.vocab_size) * 4;
  const int64_t scratch = grid.ranks() > 1 ? kScratchBytes : 0;
  return attention + residual + partial + exchanged + logits + scratch +
         moe_workspace(shape, shard, grid, rows, tokens);
}

RankMemory rank_memory(const PlanShape& shape, const std::vector<PlanMatrix>& matrices, const ModelShard& shard,
                       const PlanGrid& grid, const PlanLoad& load) {
  RankMemory memory;
  memory.shard = shard;
  memory.weights = rank_weights(matrices, shard, grid, 0);
  const int64_t layers = shape.config.num_layers;
  memory.kv_bytes_per_token = layers * 2 * cache_values(shape, kv_heads_of(shape, shard));
  const int64_t positions = layout::ceil_div(load.context, layout::kPagePositions) * layout::kPagePositions;
  memory.kv_bytes = load.group_tokens(load.decode_tokens, grid.ep) * positions * memory.kv_bytes_per_token;
  const StepTokens decode{load.decode_tokens, load.decode_tokens}, prefill{load.prefill_tokens, grid.ep};
  memory.activation_bytes =
      std::max(activation_bytes(shape, shard, grid, load, decode), activation_bytes(shape, shard, grid, load, prefill));
  return memory;
}

template <typename Partners>
int most_outside(const PlanGrid& grid, Partners&& are_partners) {
  int most = 0;
  for (int rank = 0; rank < grid.ranks(); ++rank) {
    int outside = 0;
    for (int other = 0; other < grid.ranks(); ++other) {
      outside += are_partners(rank, other) && other / grid.gpus_per_host != rank / grid.gpus_per_host ? 1 : 0;
    }
    most = std::max(most, outside);
  }
  return most;
}

}  // namespace

int64_t experts_here(int64_t experts, const PlanGrid& grid, int ep_index) {
  return experts / grid.ep + (ep_index < experts % grid.ep ? 1 : 0);
}

int PlanGrid::tp_partners_outside() const {
  return most_outside(*this, [this](int rank, int other) { return rank / tp == other / tp; });
}

int PlanGrid::ep_partners_outside() const {
  return most_outside(*this, [this](int rank, int other) { return rank % tp == other % tp; });
}

int64_t PlanLoad::group_tokens(int64_t tokens, int ep) const {
  return attention == AttentionOver::kReplicated ? tokens : slice_tokens(tokens, ep);
}

int64_t RankWeights::total() const {
  return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
}

RankWeights rank_weights(const std::vector<PlanMatrix>& matrices, const ModelShard& shard, const PlanGrid& grid,
                         int ep_index, PlanLayout layout) {
  RankWeights weights;
  for (const PlanMatrix& m : matrices) {
    const int64_t count = m.part == PlanPart::kExperts ? experts_here(m.count, grid, ep_index) : m.count;
    weights.bytes[static_cast<size_t>(m.part)] += count * matrix_bytes(m, shard, layout);
  }
  return weights;
}

Status check_grid(const PlanShape& shape, const PlanGrid& grid) {
  const int64_t experts = shape.config.num_moe_layers() > 0 ? shape.config.router.num_experts : 0;
  if (grid.ep > 1 && grid.ep > experts) {
    return make_error(ErrorCode::kUnsupported, "{} expert-parallel groups: the model has {} experts; legal: 1..{}",
                      grid.ep, experts, std::max<int64_t>(1, experts));
  }
  if (auto shards = layout::plan_shards(shard_shape(shape), grid.tp); !shards) return shards.error();
  return {};
}

Result<RankMemory> largest_rank(const PlanShape& shape, const PlanGrid& grid, const PlanLoad& load) {
  QD_TRY_STATUS(check_grid(shape, grid));
  QD_TRY(const std::vector<ModelShard> shards, layout::plan_shards(shard_shape(shape), grid.tp));
  const std::vector<PlanMatrix> matrices = plan_matrices(shape);
  RankMemory largest;
  for (const ModelShard& shard : shards) {
    const RankMemory memory = rank_memory(shape, matrices, shard, grid, load);
    if (memory.total() > largest.total()) largest = memory;
  }
  return largest;
}

std::vector<PlanGrid> grids_of(int gpus, int gpus_per_host) {
  std::vector<PlanGrid> grids;
  for (int tp = 1; tp <= gpus; ++tp) {
    if (gpus % tp == 0) grids.push_back({tp, gpus / tp, gpus_per_host});
  }
  return grids;
}

}  // namespace quadrille::plan
