// SPDX-License-Identifier: Apache-2.0
// What a caller asks of the engine and what comes back: plain values, no tensors. A server sits on these.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace quadrille::engine {

using RequestId = uint64_t;

// temperature 0 is greedy (ties to the lower id). Filters apply in this order: repetition penalty, temperature, top-k,
// top-p, min-p. The draw of a token depends on (seed, index of the token in the answer) and the logits alone.
struct SamplingParams {
  float temperature = 0;
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // 1: off
  float min_p = 0;               // 0: off
  float repetition_penalty = 1;  // 1: off; over prompt and answer, as the field defines it
  uint64_t seed = 0;
};

struct Request {
  std::vector<int32_t> prompt;  // token ids, at least one
  int64_t max_tokens = 256;     // length of the answer; 0: only the prompt's log-probabilities
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;          // end-of-sequence ids of the model and the caller's own
  std::vector<std::string> stop_strings;  // the answer ends before the first occurrence
  bool ignore_stop_ids = false;
  int32_t logprobs = -1;         // -1: none; n >= 0: of the chosen token and of the n best
  int32_t prompt_logprobs = -1;  // the same for the tokens of the prompt (from the second on)
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

// One token of the answer (or of the prompt), with its log-probabilities where asked for.
struct TokenOutput {
  int32_t id = 0;
  float logprob = 0;              // 0 where not asked for
  std::vector<TokenLogprob> top;  // best first, ties to the lower id
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kError };
const char* finish_reason_name(FinishReason reason);

// What is new since the last poll of this request.
struct Update {
  RequestId id = 0;
  std::vector<TokenOutput> tokens;         // new tokens of the answer, stop ids left out
  std::string text;                        // new text that is certain: whole characters, no part of a stop string
  std::vector<TokenOutput> prompt_tokens;  // once, when the prompt is through
  FinishReason finish = FinishReason::kNone;
  std::optional<Error> error;        // with kError
  int64_t cached_prompt_tokens = 0;  // prompt positions found by prefix reuse
};

}  // namespace quadrille::engine
