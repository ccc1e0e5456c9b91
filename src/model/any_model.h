// SPDX-License-Identifier: Apache-2.0
// What the command line and tests ask of a model in memory, wherever it computes: model.h is the one on the CPU,
// device_model.h the one on a GPU.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "kernels/api/problems.h"
#include "layout/shard_plan.h"
#include "model/config.h"
#include "model/forward.h"
#include "model/observer.h"

namespace quadrille::model {

struct MemoryUse {
  uint64_t weight_bytes = 0;  // prepared weights of all kinds
  uint64_t expert_bytes = 0;  // of these, the routed experts
  uint64_t cache_bytes = 0;
  uint64_t position_bytes = 0;  // cos and sin
  uint64_t scratch_bytes = 0;   // as large as the largest step so far
  // Weight bytes that one token reads in a decode step: everything but the embedding and the experts not chosen.
  uint64_t bytes_read_per_token = 0;
};

class AnyModel : public Forward {
 public:
  virtual const ModelConfig& config() const = 0;
  virtual kernels::Numerics numerics() const = 0;
  virtual kernels::Rounding rounding() const = 0;
  virtual std::string backend() const = 0;  // the kernel table: "avx512", "cuda"
  virtual MemoryUse memory() const = 0;
  // Notes of the load that a report should carry ("rounded 3 scales, largest relative error 1.9e-3").
  virtual const std::vector<std::string>& notes() const = 0;

  // What each tensor-parallel rank holds, in rank order; empty: one rank.
  virtual const std::vector<layout::ModelShard>& shards() const {
    static const std::vector<layout::ModelShard> none;
    return none;
  }

  // Null: none. Must outlive its use.
  virtual void set_observer(StepObserver* observer) = 0;
  // The feed-forward block of one MoE layer by itself: x [num_tokens, hidden_size] -> out, as inside run().
  virtual Status run_moe_block(int64_t layer, std::span<const float> x, int64_t num_tokens, std::span<float> out) = 0;
};

}  // namespace quadrille::model
