// SPDX-License-Identifier: Apache-2.0
// Brings steps to the model and results to their sequences. Called by engine.cpp, on the stepping thread alone.
//
// Two ways, the same answers. Where the host reads the logits, a step is run, read, and the next one planned. Where the
// model chooses tokens by itself (model/async_forward.h) the next step is planned and enqueued while one is on its way,
// on tokens that nobody has seen. What shows too late - a stop id, a stop string, a cancellation, a row without a
// number - costs the device a token: the sequence gives its pages back at once, since steps run in the order in which
// they were enqueued, and what the later step says of it is thrown away.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/batch.h"
#include "engine/block_manager.h"
#include "engine/options.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "model/async_forward.h"
#include "model/forward.h"

namespace quadrille::engine {

class StepRunner {
 public:
  // `model` must outlive the runner.
  StepRunner(model::Forward& model, const EngineOptions& options);
  // Waits for the steps on their way.
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;

  void add(std::unique_ptr<Sequence> sequence);
  // The request ends with kCancelled, if it has not ended.
  void cancel(RequestId id);

  // Takes the results of a step, with the next one on its way where the model can; before a step that the host must
  // read, those of the steps on their way as well. False when there is nothing to do. An error of the model ends every
  // running sequence with it; an exception does so, too, and goes on up.
  Result<bool> step();
  // Steps on their way for sequences that have all ended are waited for and forgotten.
  void drop_useless();

  // What the steps have run since it was asked last, without what was thrown away.
  struct Done {
    int64_t steps = 0, prefill_tokens = 0, decode_tokens = 0;
  };
  Done take_done() { return std::exchange(done_, {}); }
  // Sequences that ended since, until clear_ended().
  const std::vector<std::unique_ptr<Sequence>>& ended() const { return ended_; }
  void clear_ended();
  const Scheduler& scheduler() const { return scheduler_; }
  const BlockManager& blocks() const { return blocks_; }

 private:
  // A step that was enqueued.
  struct Flight {
    model::AsyncForward* async = nullptr;
    Plan plan;
    std::vector<Batch::Row> rows;
    std::vector<std::unique_ptr<Sequence>> kept;  // ended ones, which this step or one before it names
  };

  Status plan_ahead(Plan* left);
  bool can_run_ahead(const Plan& plan, const model::AsyncForward& async);
  Status launch(Plan plan, model::AsyncForward& async);
  Status collect();
  Status run(const Plan& plan);
  void settle(const Plan& plan);
  void fail_running(const Error& error);
  void forget_flights();
  // Calls the model.
  template <typename Call>
  auto ask(const Call& call) -> decltype(call());

  model::Forward& model_;
  const int64_t vocab_size_;
  const bool run_ahead_;
  BlockManager blocks_;
  Scheduler scheduler_;
  Batch batch_;
  Sampler sampler_;
  std::vector<float> logits_;   // [rows, vocab]
  std::deque<Flight> flights_;  // oldest first
  std::vector<std::unique_ptr<Sequence>> ended_;
  Done done_;
};

}  // namespace quadrille::engine
