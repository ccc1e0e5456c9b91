// SPDX-License-Identifier: Apache-2.0
// The tables behind placement.h: slots of each rank, and their inverse both ways.
#include "moe/placement.h"

#include <algorithm>
#include <limits>

namespace quadrille::moe {
namespace {

Status check_sizes(int64_t num_experts, size_t ranks) {
  if (num_experts >= 1 && num_experts <= std::numeric_limits<int32_t>::max() && ranks >= 1 &&
      ranks <= static_cast<size_t>(Placement::kMaxRanks)) {
    return {};
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "placement: {} experts over {} expert-parallel ranks; legal are 1 expert and more over 1..{} ranks",
                    num_experts, ranks, Placement::kMaxRanks);
}

}  // namespace

Placement::Placement(int64_t num_experts, int ranks)
    : num_experts_(num_experts),
      slots_(static_cast<size_t>(ranks)),
      slot_of_expert_(static_cast<size_t>(ranks), std::vector<int32_t>(static_cast<size_t>(num_experts), kFree)),
      holders_(static_cast<size_t>(num_experts)) {}

Result<Placement> Placement::even(int64_t num_experts, int ranks) {
  QD_TRY_STATUS(check_sizes(num_experts, ranks < 0 ? 0 : static_cast<size_t>(ranks)));
  Placement placement(num_experts, ranks);
  const int64_t each = num_experts / ranks, longer = num_experts % ranks;
  int64_t expert = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t count = each + (rank < longer ? 1 : 0);
    for (int64_t i = 0; i < count; ++i) placement.put(expert++, rank, static_cast<int32_t>(i));
  }
  return placement;
}

Result<Placement> Placement::of(int64_t num_experts, const std::vector<std::vector<int32_t>>& experts) {
  QD_TRY_STATUS(check_sizes(num_experts, experts.size()));
  Placement placement(num_experts, static_cast<int>(experts.size()));
  for (size_t rank = 0; rank < experts.size(); ++rank) {
    for (const int32_t expert : experts[rank]) QD_TRY_STATUS(placement.add(expert, static_cast<int>(rank)));
  }
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    if (!placement.holders(expert).empty()) continue;
    return make_error(ErrorCode::kInvalidArgument, "placement: none of {} ranks holds expert {}; each of {} is needed",
                      experts.size(), expert, num_experts);
  }
  return placement;
}

int64_t Placement::num_held(int rank) const {
  return std::count_if(slots(rank).begin(), slots(rank).end(), [](int32_t expert) { return expert != kFree; });
}

int Placement::serving_rank(int64_t expert, int source) const {
  if (holds(source, expert)) return source;
  const std::span<const int32_t> ranks = holders(expert);
  return ranks[static_cast<size_t>(source) % ranks.size()];
}

std::vector<int32_t> Placement::serving_ranks(int source) const {
  std::vector<int32_t> ranks;
  for (int64_t expert = 0; expert < num_experts_; ++expert) ranks.push_back(serving_rank(expert, source));
  return ranks;
}

Status Placement::check(int64_t expert, int rank) const {
  if (expert >= 0 && expert < num_experts_ && rank >= 0 && rank < num_ranks()) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "placement: expert {} on rank {}; legal are the experts 0..{} and the ranks 0..{}", expert, rank,
                    num_experts_ - 1, num_ranks() - 1);
}

void Placement::put(int64_t expert, int rank, int32_t slot) {
  std::vector<int32_t>& slots = slots_[static_cast<size_t>(rank)];
  if (static_cast<size_t>(slot) == slots.size()) slots.push_back(kFree);
  slots[static_cast<size_t>(slot)] = static_cast<int32_t>(expert);
  slot_of_expert_[static_cast<size_t>(rank)][static_cast<size_t>(expert)] = slot;
  std::vector<int32_t>& holders = holders_[static_cast<size_t>(expert)];
  holders.insert(std::lower_bound(holders.begin(), holders.end(), rank), rank);
}

Result<int32_t> Placement::add(int64_t expert, int rank) {
  QD_TRY_STATUS(check(expert, rank));
  if (holds(rank, expert)) {
    return make_error(ErrorCode::kInvalidArgument, "placement: rank {} holds expert {} already, in slot {}", rank,
                      expert, slot(rank, expert));
  }
  const std::vector<int32_t>& slots = slots_[static_cast<size_t>(rank)];
  const auto free = static_cast<int32_t>(std::find(slots.begin(), slots.end(), kFree) - slots.begin());
  put(expert, rank, free);
  return free;
}

Status Placement::remove(int64_t expert, int rank) {
  QD_TRY_STATUS(check(expert, rank));
  std::vector<int32_t>& holders = holders_[static_cast<size_t>(expert)];
  if (!holds(rank, expert) || holders.size() == 1) {
    return make_error(ErrorCode::kInvalidArgument, "placement: expert {} cannot leave rank {}: {}", expert, rank,
                      holds(rank, expert) ? "no other rank holds it" : "the rank does not hold it");
  }
  slots_[static_cast<size_t>(rank)][static_cast<size_t>(slot(rank, expert))] = kFree;
  slot_of_expert_[static_cast<size_t>(rank)][static_cast<size_t>(expert)] = -1;
  holders.erase(std::lower_bound(holders.begin(), holders.end(), rank));
  return {};
}

}  // namespace quadrille::moe
