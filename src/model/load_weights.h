// SPDX-License-Identifier: Apache-2.0
// Fills a model's weights: from a checkpoint's inventory, or with random numbers of the same shapes. Called by
// model.cpp.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "layout/shard_plan.h"
#include "model/inventory.h"
#include "model/model.h"
#include "model/weights.h"

namespace quadrille::model {

struct LoadedWeights {
  ModelWeights weights;
  std::vector<std::string> notes;
};

// kUnsupported where a module is W4A16 and options do not allow it.
Status check_weight_only(const Inventory& inventory, const LoadOptions& options);

// Told what was read: layer -1 when the embedding, the last norm and lm_head stand in `weights`, then each layer. What
// it clears is freed.
using WeightsRead = std::function<Status(ModelWeights* weights, int64_t layer)>;

// Expert by expert over the pool, so that beside the result only a few matrices are in memory. Errors: those of
// weight_reader.h, kUnsupported for W4A16 without its option, kCancelled.
// `shard`: what this tensor-parallel rank holds; null: the whole model. `placement`: of every layer's experts over
// options.expert_ranks, of which this rank reads its own alone; null: all.
Result<LoadedWeights> load_weights(const Inventory& inventory, const ModelConfig& config, const LoadOptions& options,
                                   const layout::ModelShard* shard, const moe::Placement* placement = nullptr,
                                   const WeightsRead& on_read = {});

// The same of random numbers. Every rank makes every matrix and keeps its part, so that a shard is that of the whole.
Result<ModelWeights> random_weights(const ModelConfig& config, const RandomModel& random, const LoadOptions& options,
                                    const layout::ModelShard* shard, const moe::Placement* placement = nullptr);
// The dimensions that are cut of a model with random weights.
layout::ModelShape random_shape(const ModelConfig& config, const RandomModel& random);

}  // namespace quadrille::model
