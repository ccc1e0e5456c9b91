// SPDX-License-Identifier: Apache-2.0
// A model on one GPU: weights, KV pages and workspace in its memory, steps as graphs where they are decode steps.
// Computes in round bf16 with the rounding points of the CPU. The command line and the engine see this header.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "kernels/api/device_table.h"
#include "model/any_model.h"
#include "model/async_forward.h"
#include "model/device_memory_plan.h"
#include "model/model.h"
#include "model/slot_pipeline.h"
#include "moe/device_layer.h"
#include "parallel/device_communicator.h"

namespace quadrille::model {

struct DeviceOptions {
  const kernels::DeviceTable* table = nullptr;  // kernels::device_table(); nothing here links the kernels
  int ordinal = 0;
  GpuMemoryLimit gpu_memory;
  // Of the weights, the cache, the workspace and what a load takes beside them.
  device::Allocator allocator = device::default_allocator();
  // A step that asks for more runs in pieces: no bit changes.
  int64_t max_step_tokens = 2048;
  int64_t max_sequences = 256;
  int64_t max_logit_rows = 64;
  bool graphs = true;  // false: every step is enqueued call by call
  // false: no kernel of a step of few tokens makes what the one before it could; no bit changes. For tests.
  bool joins_steps = true;
  // Joins the GPUs of LoadOptions::ranks (parallel::nccl_communicator); empty: there is one rank. A collective.
  std::function<Result<std::unique_ptr<parallel::DeviceCommunicator>>(parallel::Communicator& host, int ordinal,
                                                                      device::Stream stream)>
      join_ranks;
};

// Where the time of load() went. The GPU's context and the folder's headers run at once.
struct DeviceLoadTimes {
  double gpu_seconds = 0;     // until context, streams and page-locked ring stand
  double folder_seconds = 0;  // until config, headers and names are read and checked
  double memory_seconds = 0;  // ranks, the plan, and the weights' memory
  uint64_t bytes_copied = 0;  // host to device
  double copy_seconds = 0;    // from the first weight read to the last preparation
  SlotTimes slots;            // of these, summed over the threads
  double finish_seconds = 0;  // cache, position tables, workspace
  double total_seconds = 0;
};

class DeviceModel final : public AnyModel, public AsyncForward {
 public:
  // Errors: kUnsupported where no GPU runs this build's kernels (device::available), for `round f32`, ranks and shapes
  // that the kernels do not take; kCapacity with the numbers, before anything is copied, where the memory is too
  // small; else those of Model::load(), with the same words. Of LoadOptions `table` is not looked at.
  static Result<std::unique_ptr<DeviceModel>> load(const std::string& folder, const LoadOptions& options,
                                                   const DeviceOptions& device);
  // The same shapes with random weights, prepared on the GPU from a pool of random numbers: for bench.
  static Result<std::unique_ptr<DeviceModel>> random(const ModelConfig& config, const RandomModel& weights,
                                                     const LoadOptions& options, const DeviceOptions& device);
  ~DeviceModel() override;
  DeviceModel(const DeviceModel&) = delete;
  DeviceModel& operator=(const DeviceModel&) = delete;

  int64_t vocab_size() const override;
  int64_t max_positions() const override;
  int64_t num_pages() const override;
  Status run(const Step& step, std::span<float> logits) override;

  const ModelConfig& config() const override;
  kernels::Numerics numerics() const override;
  kernels::Rounding rounding() const override { return kernels::Rounding::kBf16; }
  std::string backend() const override { return "cuda"; }
  MemoryUse memory() const override;
  const std::vector<std::string>& notes() const override;
  const std::vector<layout::ModelShard>& shards() const override;
  // With an observer steps are enqueued call by call, and the host waits between layers.
  void set_observer(StepObserver* observer) override;
  Status run_moe_block(int64_t layer, std::span<const float> x, int64_t num_tokens, std::span<float> out) override;

  // Null while an observer is set: it looks on from inside run() alone.
  AsyncForward* async_forward() override;
  int64_t max_async_tokens() const override;
  int64_t max_async_sequences() const override;
  bool draws() const override;
  Status enqueue(const Step& step, std::span<const int32_t> taken_from,
                 std::span<const kernels::SampleRule> rules) override;
  Result<std::span<const int32_t>> collect() override;

  DeviceMemoryPlan memory_plan() const;
  // Those of a step, for tests that make one of them slow.
  const moe::DeviceStreams& streams() const;
  DeviceLoadTimes load_times() const;
  int64_t num_graphs() const;  // captured so far

 private:
  struct Impl;
  explicit DeviceModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quadrille::model
