// SPDX-License-Identifier: Apache-2.0
// What of a checkpoint goes into which slot of the ring, and from there to which place in the weights' memory: pieces
// of dense tensors together, stacks of 4-bit matrices as many experts a slot as fit. Decided before a weight is read.
// Called by device_load.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "layout/shard_plan.h"
#include "model/config.h"
#include "model/device_cuts.h"
#include "model/device_places.h"
#include "model/inventory.h"

namespace quadrille::model {

// Rows of a tensor that one thread reads, as bf16 or (a bias) fp32.
struct DensePiece {
  CutModule module;
  layout::Range rows;  // of the module
  bool is_bias = false;
  size_t offset = 0;  // in the weights' memory
  size_t bytes = 0;
  size_t slot_offset = 0;
  bool is_last = false;  // of its module
};

// A stack of 4-bit matrices: sources of each expert in the order of the rows.
struct W4Stack {
  const StackPlace* place = nullptr;
  int32_t num_parts = 1;  // 2: gate and up
  std::vector<std::vector<CutModule>> experts;
  size_t expert_bytes = 0;  // in a slot
};

// Dense pieces, or `count` experts of a stack from `first` on.
struct LoadSlot {
  std::vector<DensePiece> pieces;
  const W4Stack* stack = nullptr;
  size_t first = 0, count = 0;

  size_t num_parts() const { return stack != nullptr ? count : pieces.size(); }
};

// Zeros behind the rows of a matrix whose place is longer.
struct ZeroFill {
  size_t offset = 0, bytes = 0;
};

struct LoadPlan {
  std::deque<W4Stack> stacks;  // the slots point to them
  std::vector<LoadSlot> slots;
  std::vector<ZeroFill> zeros;
};

// `shard`: what this rank takes; null: everything. Every slot needs `slot_bytes` at most, which hold the largest expert
// (WeightPlaces::largest_slot) or more.
LoadPlan plan_load(const Inventory& inventory, const ModelConfig& config, const WeightPlaces& places,
                   const layout::ModelShard* shard, const W4Gatherer& gatherer, size_t slot_bytes);

}  // namespace quadrille::model
