// SPDX-License-Identifier: Apache-2.0
// Which expert-parallel rank holds which experts of a layer, and who computes a route. Integers only, the same on every
// rank; uneven placements, ranks without an expert and experts that several ranks hold are all fine. Made by the
// loader, read by dispatch.h and by the device layer, changed by whoever moves an expert between steps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"

namespace quadrille::moe {

// Experts have two numbers: that of the router, the same everywhere, and the local slot on a rank that holds it, which
// is the index of its matrices there. A slot keeps its expert until the expert is removed; a removed one leaves its
// slot free, so that no other expert's memory moves.
class Placement {
 public:
  static constexpr int kMaxRanks = 1024;
  static constexpr int32_t kFree = -1;

  // Ranges of experts in ascending order, the first num_experts % ranks ranks with one more (60 over 8: four of 8, four
  // of 7). kInvalidArgument: no expert, or ranks outside of 1..kMaxRanks.
  static Result<Placement> even(int64_t num_experts, int ranks);
  // experts[r]: what rank r holds, in the order of its slots. kInvalidArgument: as above, an expert outside of
  // 0..num_experts - 1, one that a rank names twice, one that no rank holds.
  static Result<Placement> of(int64_t num_experts, const std::vector<std::vector<int32_t>>& experts);

  int64_t num_experts() const { return num_experts_; }
  int num_ranks() const { return static_cast<int>(slots_.size()); }
  // The expert in each slot of `rank`, kFree in an unused one.
  std::span<const int32_t> slots(int rank) const { return slots_[static_cast<size_t>(rank)]; }
  int64_t num_slots(int rank) const { return static_cast<int64_t>(slots(rank).size()); }
  int64_t num_held(int rank) const;  // slots that are not free
  // [num_experts]: the slot of each expert on `rank`, -1 where the rank does not hold it.
  std::span<const int32_t> slot_of_expert(int rank) const { return slot_of_expert_[static_cast<size_t>(rank)]; }
  int32_t slot(int rank, int64_t expert) const { return slot_of_expert(rank)[static_cast<size_t>(expert)]; }
  bool holds(int rank, int64_t expert) const { return slot(rank, expert) >= 0; }
  std::span<const int32_t> holders(int64_t expert) const { return holders_[static_cast<size_t>(expert)]; }  // ascending

  // The rank that computes the routes of `source`'s tokens to `expert`: the source itself where it holds it, else
  // holders[source % number of holders].
  int serving_rank(int64_t expert, int source) const;
  // That of every expert: [num_experts].
  std::vector<int32_t> serving_ranks(int source) const;

  // One more holder: the lowest free slot, or a new one, which is returned. kInvalidArgument: no such expert or rank,
  // or held already.
  Result<int32_t> add(int64_t expert, int rank);
  // One holder less. kInvalidArgument: no such expert or rank, not held there, or held nowhere else.
  Status remove(int64_t expert, int rank);

  friend bool operator==(const Placement&, const Placement&) = default;

 private:
  Placement(int64_t num_experts, int ranks);
  Status check(int64_t expert, int rank) const;
  void put(int64_t expert, int rank, int32_t slot);

  int64_t num_experts_;
  std::vector<std::vector<int32_t>> slots_;           // [ranks][slots]
  std::vector<std::vector<int32_t>> slot_of_expert_;  // [ranks][num_experts]
  std::vector<std::vector<int32_t>> holders_;         // [num_experts][holders]
};

}  // namespace quadrille::moe
