// SPDX-License-Identifier: Apache-2.0
// Experts that change their rank while a model lives, between two steps: the one that moves is copied as a blob with
// all its scales, every other expert's memory stays where and what it is. Called by model.cpp.
#pragma once

#include "core/result.h"
#include "model/expert_move.h"
#include "model/weights.h"
#include "moe/expert_blob.h"
#include "moe/linear.h"

namespace quadrille::model {

// What every expert of the layer is on this rank; also where it holds none.
moe::ExpertKind expert_kind(const LayerStore& layer, kernels::Numerics numerics);

// An expert that this rank holds, as bytes. kInvalidArgument: it does not.
Result<moe::Blob> export_expert(const LayerStore& layer, const moe::ExpertName& name);

// Puts an unpacked expert into `slot`, the next one or a free one.
void put_expert(moe::Expert expert, int64_t slot, MlpStore* store);
// Frees the memory of a slot.
void drop_expert(int64_t slot, MlpStore* store);

// The memory of an expert that this rank holds: codes, scales, channel scales of gate_up, then of down. Empty where it
// does not.
std::vector<std::span<const std::byte>> expert_memory(const LayerStore& layer, int64_t expert);

// Collective over all ranks of the grid, with the same move on each. The placement of `layer` changes on every rank, or
// on none. Errors: kInvalidArgument for a move that the placement does not allow (the same on all ranks); kInvalidData
// where what arrived is not the expert, kCapacity where memory is short, each also on the ranks that had no part in
// it; those of the communicator. After all but the last the layer is what it was. Views must be made again afterwards
// (ModelWeights::seal_experts).
Status move_expert(const ExpertMove& move, const moe::Execution& execution, LayerStore* layer);

}  // namespace quadrille::model
