// SPDX-License-Identifier: Apache-2.0
// What the engine counts: sums since it was made, and the state after the last step. Read by cli and server.
#pragma once

#include <cstdint>

namespace quadrille::engine {

struct EngineMetrics {
  int64_t steps = 0;               // steps that ran the model; one whose tokens were all thrown away does not count
  int64_t prefill_tokens = 0;      // tokens of prompts, and of answers recomputed after a preemption
  int64_t decode_tokens = 0;       // tokens run to get the next one of an answer
  int64_t preemptions = 0;         // times that a sequence lost its pages to an older one
  int64_t prefix_hits_tokens = 0;  // positions found in cached pages
  int64_t running = 0, waiting = 0;
  int64_t free_pages = 0, total_pages = 0;  // free: referenced by no sequence, cached or not
  // Wall time of the steps; that of a mixed step is shared out by its tokens.
  double step_seconds = 0, prefill_seconds = 0, decode_seconds = 0;

  // Counts what `done` steps ran.
  void add_steps(int64_t done, int64_t prefill, int64_t decode, double seconds) {
    const double total = static_cast<double>(prefill + decode);
    steps += done;
    prefill_tokens += prefill;
    decode_tokens += decode;
    step_seconds += seconds;
    if (total <= 0) return;
    prefill_seconds += seconds * (static_cast<double>(prefill) / total);
    decode_seconds += seconds * (static_cast<double>(decode) / total);
  }
};

}  // namespace quadrille::engine
