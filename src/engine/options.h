// SPDX-License-Identifier: Apache-2.0
// The limits that shape a step. Set by whoever builds an engine (cli, server), read by the scheduler.
#pragma once

#include <cstdint>

namespace quadrille::engine {

// Values below 1 count as 1. None of them changes an answer, only its time.
struct EngineOptions {
  int64_t max_batch_tokens = 512;      // tokens of one step, decode and prefill chunks together
  int64_t max_sequences = 64;          // sequences that run at the same time
  int64_t prefill_chunk = 512;         // longest piece of one prompt in one step
  int64_t max_queued = 4096;           // requests that may wait; one more is kCapacity
  bool prefix_cache = false;           // reuse full pages by the hash of all tokens up to their end
  bool run_ahead = true;               // where the model can (Forward::async_forward): two steps on their way at a time
  int64_t max_logit_bytes = 64 << 20;  // logits of one step: prompts with log-probabilities go in shorter pieces
};

}  // namespace quadrille::engine
