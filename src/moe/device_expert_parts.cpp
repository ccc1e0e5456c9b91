// SPDX-License-Identifier: Apache-2.0
// Sizes are planned for the worst routing: every route of every rank on one rank.
#include "moe/device_expert_parts.h"

#include <algorithm>
#include <numeric>

#include "moe/device_call.h"
#include "moe/device_check.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {
namespace {

constexpr size_t kLine = 256;
size_t lines(int64_t count, int64_t size) {
  return (static_cast<size_t>(count * size) + kLine - 1) / kLine * kLine;
}

Status check_rank_tokens(const DeviceMoeLayer& layer, std::span<const int64_t> rank_tokens) {
  if (layer.ranks.expert == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expert-parallel layer: expected a communicator of its ranks");
  }
  const auto size = static_cast<size_t>(layer.ranks.expert->size());
  if (size > static_cast<size_t>(kernels::kMaxExpertRanks)) {
    return make_error(ErrorCode::kUnsupported, "expert-parallel layer: expected at most {} ranks, found {}",
                      kernels::kMaxExpertRanks, size);
  }
  if (rank_tokens.size() != size) {
    return make_error(ErrorCode::kInvalidArgument,
                      "expert-parallel layer: {} counts of tokens, expected one a rank: {}", rank_tokens.size(), size);
  }
  int64_t all = 0;
  const int64_t most = kMaxRows / std::max<int64_t>(layer.rule.top_k, 1);
  for (const int64_t tokens : rank_tokens) {
    if (tokens < 0 || tokens > most - all) {
      return make_error(ErrorCode::kInvalidArgument,
                        "expert-parallel layer: expected 0..{} tokens of all ranks together, found {} on one", most,
                        tokens);
    }
    all += tokens;
  }
  return {};
}

}  // namespace

int64_t record_pitch(const DeviceMoeLayer& layer) {
  return kernels::token_record_pitch(act_pitch(layer.experts.hidden), layer.rule.top_k);
}
int64_t row_bytes(const DeviceMoeLayer& layer) {
  const int64_t value = layer.ranks.is_split() ? sizeof(float) : sizeof(uint16_t);
  return layer.experts.hidden * value;
}
bool has_experts(const DeviceMoeLayer& layer) {
  return layer.experts.gate_up.num_experts > 0;
}
DeviceMoeLayer mapped(const DeviceMoeLayer& layer) {
  static constexpr int32_t kSomeMap = -1;
  DeviceMoeLayer out = layer;
  out.expert_map = &kSomeMap;  // asked for null, never read on the host
  if (!has_experts(layer)) out.experts.gate_up.num_experts = out.experts.down.num_experts = 1;
  return out;
}

ExpertParts plan_expert_parts(const DeviceMoeLayer& layer, int64_t all, int64_t own, int64_t ranks, bool over_region) {
  ExpertParts parts;
  parts.layer = plan_layer_parts(mapped(layer), all);
  size_t end = parts.layer.total;
  const auto take = [&end](int64_t count, int64_t size) {
    const Part part{end, static_cast<size_t>(count * size)};
    end += lines(count, size);
    return part;
  };
  const int64_t top_k = layer.rule.top_k;
  parts.act_scale = take(own, sizeof(float));
  parts.ids = take(all * top_k, sizeof(int32_t));
  if (!over_region) {
    parts.records = take(all, record_pitch(layer));
    parts.sent = take(all * top_k, row_bytes(layer));
    parts.received = take(ranks * own * top_k, row_bytes(layer));
  }
  parts.total = end;
  return parts;
}

Status check_region(const DeviceMoeLayer& layer, const ExpertCall& experts, int64_t all) {
  const ExpertRegion& region = experts.region;
  if (region.memory == nullptr) return {};
  if (layer.ranks.expert->peers() == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expert-parallel layer: a region, and ranks that reach no peers");
  }
  const int64_t most = *std::max_element(experts.rank_tokens.begin(), experts.rank_tokens.end());
  const size_t records = lines(most, record_pitch(layer));
  const size_t slots = lines(all * layer.rule.top_k, sizeof(int32_t));
  const size_t rows = lines(all * layer.rule.top_k, row_bytes(layer));
  if (region.parts.records >= records && region.parts.slots >= slots && region.parts.rows >= rows &&
      region.memory->bytes() >= region.parts.total()) {
    return {};
  }
  return make_error(ErrorCode::kCapacity,
                    "region of expert-parallel ranks: expected at least {}, {} and {} bytes of tokens, slots and rows, "
                    "found {}, {} and {} in {}",
                    records, slots, rows, region.parts.records, region.parts.slots, region.parts.rows,
                    region.memory->bytes());
}

Status check_memory(const DeviceMoeLayer& layer, const DeviceBatch& batch, const ExpertCall& experts) {
  QD_TRY_STATUS(check_pointer(experts.placement.local, 4, "experts of this rank"));
  QD_TRY_STATUS(check_pointer(experts.placement.serving, 4, "serving ranks"));
  if (has_experts(layer)) QD_TRY_STATUS(check_mlp_memory(layer.experts, "experts"));
  if (batch.num_tokens == 0) return {};
  QD_TRY_STATUS(check_batch(batch));
  if (layer.shared) QD_TRY_STATUS(check_mlp_memory(*layer.shared, "shared expert"));
  return {};
}

std::vector<int32_t> local_experts(const Placement& placement, int rank) {
  std::vector<int32_t> local;
  local.reserve(static_cast<size_t>(placement.num_ranks() * placement.num_experts()));
  for (int source = 0; source < placement.num_ranks(); ++source) {
    for (int64_t e = 0; e < placement.num_experts(); ++e) {
      local.push_back(placement.serving_rank(e, source) == rank ? placement.slot(rank, e) : -1);
    }
  }
  return local;
}

ExpertRegionParts expert_region_parts(const DeviceMoeLayer& layer, int64_t max_rank_tokens) {
  const int64_t routes = max_rank_tokens * layer.ranks.expert->size() * layer.rule.top_k;
  return {lines(max_rank_tokens, record_pitch(layer)), lines(routes, sizeof(int32_t)), lines(routes, row_bytes(layer))};
}

Status can_run_expert_parallel(const DeviceMoeLayer& layer, std::span<const int64_t> rank_tokens) {
  QD_TRY_STATUS(check_rank_tokens(layer, rank_tokens));
  return can_run(mapped(layer), std::accumulate(rank_tokens.begin(), rank_tokens.end(), int64_t{0}));
}

size_t expert_workspace_bytes(const DeviceMoeLayer& layer, int64_t max_rank_tokens, bool over_region) {
  if (layer.ranks.expert == nullptr) return 0;
  const int64_t ranks = layer.ranks.expert->size();
  const std::vector<int64_t> tokens(static_cast<size_t>(ranks), max_rank_tokens);
  if (!can_run_expert_parallel(layer, tokens)) return 0;
  return plan_expert_parts(layer, ranks * max_rank_tokens, max_rank_tokens, ranks, over_region).total;
}

}  // namespace quadrille::moe
