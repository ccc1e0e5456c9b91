// SPDX-License-Identifier: Apache-2.0
// Compares the ranks of a model with the trace of one rank, layer by layer, each layer from equal input: whatever a
// layer adds to the residual stream is replaced by that of one rank once it has been compared.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/verify_trace.h"
#include "core/result.h"
#include "layout/shard_plan.h"
#include "model/any_model.h"

namespace quadrille::cli {

// The first differing value of one tensor on one rank.
struct Difference {
  int64_t record = 0;  // place in the trace: what comes first differs first
  std::string step;    // "sequence 1, tokens 0..6"
  int64_t layer = 0;   // -1: embedding or head
  std::string module;  // "mlp.experts.3.down_proj"
  std::string what;    // "input codes", "output", ...
  int64_t row = 0, column = 0;
  std::string expected, found;
  int rank = 0;       // -1: the sum over all ranks
  int64_t count = 0;  // values that differ in this tensor
  double bound = 0;   // 0: equal bit for bit

  std::string text() const;
};

struct LayerReport {
  int64_t tensors = 0;  // compared on this rank
  int64_t values = 0;
  int64_t sums = 0;               // values of sums over ranks: compared with a bound
  double largest_share = 0;       // of a bound that a sum reached
  std::vector<Difference> found;  // of all ranks, in the order of the trace
  int64_t differing_tensors = 0;  // over all ranks
};

// The ranks of a grid as one rank sees them; `tensor`, the ranks that cut its layers, is `all` without expert ranks.
struct RankGroups {
  parallel::Communicator& all;
  parallel::Communicator& tensor;
  bool has_expert_ranks() const { return all.size() != tensor.size(); }
};

// A collective: every rank calls it with the same trace and sequences. Every rank gets the report. With expert ranks
// the stages inside a MoE block, which belong to other tokens on each rank, are left out: its output is compared.
Result<LayerReport> compare_layers(model::AnyModel& model, const RankGroups& ranks,
                                   const std::vector<TraceRecord>& trace, const Sequences& sequences);

}  // namespace quadrille::cli
