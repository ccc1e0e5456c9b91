// SPDX-License-Identifier: Apache-2.0
// A model in memory: load() checks and prepares a folder's weights, or maps those of a prepared folder; run() computes
// steps (forward.h). The command line and the engine see this header; everything behind it is the model's own.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/result.h"
#include "core/thread_pool.h"
#include "kernels/api/table.h"
#include "model/any_model.h"
#include "model/description.h"
#include "model/expert_move.h"
#include "moe/linear.h"
#include "moe/placement.h"

namespace quadrille::model {

struct LoadProgress {
  int64_t modules_done = 0, modules_total = 0;
  uint64_t bytes_done = 0, bytes_total = 0;  // of the checkpoint
  std::string module;                        // the last one that is done
};

struct LoadOptions {
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Rounding rounding = kernels::Rounding::kBf16;
  const kernels::KernelTable* table = nullptr;  // null: the best one that runs here
  ThreadPool* pool = nullptr;                   // required; must outlive the model

  bool run_weight_only_as_fp8 = false;  // --activations fp8: a W4A16 checkpoint runs as W4A8 instead of being refused
  bool round_scales = false;            // --scales round: scales that bf16 does not hold are rounded, not refused

  // The tensor-parallel ranks of this model, one of which loads here; null or one rank: the whole model. Every rank
  // calls load() and run() with the same arguments and gets the same results; `cancel` then ends a load, not a step
  // (ranks that stop at different layers would wait for each other): callers agree between steps. Must outlive the
  // model.
  parallel::Communicator* ranks = nullptr;
  // The expert-parallel ranks; null or one rank: every expert is here. Of a grid the ranks with the same
  // tensor-parallel number: each of the two communicators is a split of one of all ranks. Otherwise as `ranks`.
  parallel::Communicator* expert_ranks = nullptr;
  // Of the experts of every MoE layer over expert_ranks; none: Placement::even().
  std::optional<moe::Placement> placement;
  moe::SplitScale split_scale = moe::SplitScale::kAgreed;  // kLocal also takes `vllm` channel scales shard by shard

  // Size of the cache: pages of 64 positions, else bytes, else enough for `default_positions` positions.
  int64_t cache_pages = 0;
  uint64_t cache_bytes = 0;
  int64_t default_positions = 8192;
  int64_t max_positions = 0;  // lowers the model's own limit (and the position tables); 0: the model's

  LogSink log = no_log();
  std::function<void(const LoadProgress&)> progress;  // called by a thread of the load, one call at a time
  const std::atomic<bool>* cancel = nullptr;          // true: load() and run() end with kCancelled
};

// A model of random W4A8 weights: codes of -7..7 with mean 0, scales that keep activations near 1.
struct RandomModel {
  int64_t group_size = 128;  // 32, 64, 128; 0 = one scale a channel
  uint64_t seed = 1;
  bool quantise_attention = true;  // false: attention projections in bf16
};

class Model final : public AnyModel {
 public:
  // Errors: those of the folder's files; kUnsupported (architecture, rope, W4A16 without its option, a table that does
  // not do round f32, a number of ranks that the model cannot be cut for), each naming what was found and what runs;
  // kNotFound / kInvalidData with file and tensor (missing, wrong type or shape, NaN or infinity in a weight or scale,
  // experts of a layer that disagree); kCapacity; kCancelled. A prepared folder (docs/prepared.md) is mapped, not read:
  // errors of prepared_weights.h; a damaged section ends the step that would use it first (kInvalidData).
  static Result<std::unique_ptr<Model>> load(const std::string& folder, const LoadOptions& options);
  // The same shapes and layouts with random weights, made in memory: for bench and verify. The weights of a rank are
  // its shard of those of one rank, bit for bit. Errors: a number of ranks that the shape cannot be cut for;
  // kCapacity; kCancelled.
  static Result<std::unique_ptr<Model>> random(const ModelConfig& config, const RandomModel& weights,
                                               const LoadOptions& options);
  ~Model() override;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  int64_t vocab_size() const override;
  int64_t max_positions() const override;
  int64_t num_pages() const override;
  // Also kLostRank, and kInvalidArgument for a step that breaks the rules of forward.h (ids, positions, pages out of
  // range).
  Status run(const Step& step, std::span<float> logits) override;

  const ModelConfig& config() const override;
  const kernels::KernelTable& table() const;
  kernels::Numerics numerics() const override;
  kernels::Rounding rounding() const override;
  std::string backend() const override { return table().name; }
  MemoryUse memory() const override;
  const std::vector<std::string>& notes() const override;
  const std::vector<layout::ModelShard>& shards() const override;

  void set_observer(StepObserver* observer) override;
  Status run_moe_block(int64_t layer, std::span<const float> x, int64_t num_tokens, std::span<float> out) override;

  // Where the experts of a layer are; null: all are here, or it has none.
  const moe::Placement* placement(int64_t layer) const;
  // Moves, copies or drops one expert. A collective over all ranks, between steps, with the same arguments on each; the
  // answers of the model stay what they are. Errors: kInvalidArgument for what the placement does not allow,
  // kInvalidData and kCapacity when the expert could not be taken over (then nothing has changed on any rank), and
  // those of the communicator.
  Status move_expert(const ExpertMove& move);
  // Codes and scales of an expert that this rank holds; empty where it does not. Valid until that expert moves.
  std::vector<std::span<const std::byte>> expert_memory(int64_t layer, int64_t expert) const;

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quadrille::model
