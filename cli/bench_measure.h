// SPDX-License-Identifier: Apache-2.0
// Times decode and prefill of a model, with the machine's ceilings probed in between: what the machine gives changes
// from second to second, so both are taken in the same rounds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "model/any_model.h"
#include "parallel/communicator.h"

namespace quadrille::cli {

struct BenchPlan {
  int64_t rounds = 7;
  int64_t prefill_tokens = 512;
  std::vector<int64_t> contexts = {1, 2048};  // tokens in front of the decoded one; a series each
  int64_t decode_tokens = 16;                 // decode steps of each series in a round, all at that context
  uint64_t seed = 0;                          // of the token ids
};

struct BenchSeries {
  int64_t context = 0;          // of a decode step
  double work = 0;              // of all ranks: bytes that a step must read, or FLOPs of a prefill
  double ceiling = 0;           // bytes/s or FLOP/s of all ranks: median over the rounds of the best probe
  std::string probe;            // what the ceiling was measured with
  std::vector<double> seconds;  // a round: of one decode step (the median of the round's), of one prefill

  double median_seconds() const;
  double reached() const;  // work / median seconds
  double ratio() const;    // reached / ceiling
};

struct BenchResult {
  std::vector<BenchSeries> decode;  // by context
  BenchSeries prefill;
};

// Positions that the plan needs in the cache.
int64_t bench_positions(const BenchPlan& plan);
// Shortens the contexts to what `max_positions` leaves room for; equal ones become one.
void fit_contexts(int64_t max_positions, BenchPlan* plan);
// One round more than asked for: the first only warms up. Ranks (null: one) measure and probe at the same time; the
// seconds are those of this rank. Errors of the model; kCancelled.
Result<BenchResult> measure(model::AnyModel& model, ThreadPool& pool, parallel::Communicator* ranks,
                            const BenchPlan& plan, const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace quadrille::cli
