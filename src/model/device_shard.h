// SPDX-License-Identifier: Apache-2.0
// What one tensor-parallel rank holds of a model on a GPU: the shard plan turned into shapes and heads, so that places,
// memory and the decoder see an ordinary, smaller model. Called by device_model.cpp; integers only.
#pragma once

#include <vector>

#include "core/result.h"
#include "layout/shard_plan.h"
#include "model/config.h"
#include "model/device_places.h"

namespace quadrille::model {

struct DeviceShard {
  std::vector<layout::ModelShard> all;  // of every rank, in rank order; empty: one rank has everything
  int rank = 0;

  bool is_split() const { return all.size() > 1; }
  // Null: everything.
  const layout::ModelShard* own() const { return is_split() ? &all[static_cast<size_t>(rank)] : nullptr; }
  // Of all ranks, in rank order, in the unsharded dimension; `whole` where there is one.
  std::vector<layout::Range> vocabulary(int64_t whole) const;
  std::vector<layout::Range> q_rows(int64_t whole) const;
  std::vector<layout::Range> kv_rows(int64_t whole) const;
};

// Errors: kUnsupported where a rank's query heads do not share its KV heads evenly, which the attention of a GPU asks
// for; names the rank, its heads and legal sizes.
Status check_device_shard(const DeviceShard& shard, const ModelConfig& config);

// The model that the rank computes: its heads and widths; the vocabulary and everything else are the whole model's.
ModelConfig rank_config(const ModelConfig& config, const DeviceShard& shard);
// The matrices that the rank holds, of those of the whole model.
DeviceModelShape rank_shape(DeviceModelShape whole, const DeviceShard& shard);

}  // namespace quadrille::model
