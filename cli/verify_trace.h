// SPDX-License-Identifier: Apache-2.0
// What the model of one rank computes, step by step and stage by stage, as the other model's ranks get it to compare.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cli/verify_bounds.h"
#include "core/result.h"
#include "model/forward.h"
#include "model/observer.h"
#include "parallel/communicator.h"

namespace quadrille::cli {

using Sequences = std::vector<std::vector<int32_t>>;

// One tensor [rows, width] of a step, in the order of the computation.
struct TraceRecord {
  int32_t step = 0, layer = 0;
  model::Module module = model::Module::kEmbedding;
  std::string stage;  // of moe/layer_observer.h, or router_logits, router_ids, router_weights, update, logits
  int64_t rows = 0, width = 0;
  std::vector<std::byte> data;
  std::vector<float> bound;  // of each value; empty: equal bit for bit

  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data.data());
  }
};

// The steps of some sequences, each alone in the pages from 0 on: the prompt but for its last token, then that one.
// `before` (may be null) is called in front of each step, `after` with its logits [tokens, vocabulary].
Status run_steps(model::Forward& model, const Sequences& sequences, parallel::Communicator* ranks,
                 const std::function<void(int32_t step)>& before,
                 const std::function<void(int32_t step, std::span<const float> logits, int64_t rows)>& after);
// "sequence 1, tokens 0..6"
std::string step_name(const Sequences& sequences, int32_t step);

// The records of all steps on the model of one rank.
Result<std::vector<TraceRecord>> record_trace(model::Forward& model,
                                              const std::function<void(model::StepObserver*)>& set,
                                              const Sequences& sequences, const SumRules& rules);

// The records of rank 0 on every rank. A collective.
Status share_trace(parallel::Communicator& ranks, std::vector<TraceRecord>* trace);
// What each rank says, in rank order, on every rank. A collective.
Result<std::vector<std::string>> gather_texts(parallel::Communicator& ranks, const std::string& mine);

}  // namespace quadrille::cli
