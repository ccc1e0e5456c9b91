// SPDX-License-Identifier: Apache-2.0
// The modules of a prepared folder as inspect and the shard plan see those of a checkpoint. Called by describe.cpp.
#pragma once

#include "model/inventory.h"
#include "model/weights.h"

namespace quadrille::model {

// Without tensors; gate and up, which lie in one matrix, are modules of their own.
ModelSources prepared_sources(const ModelWeights& weights, const ModelConfig& config);
// "w4_lanes16 1", "bf16_rows 1"
std::string prepared_storage(const ModuleSource& source);
// What of the file a module takes: codes and scales with the padding of the layout.
uint64_t prepared_bytes(const ModuleSource& source);

}  // namespace quadrille::model
