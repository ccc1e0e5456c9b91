// SPDX-License-Identifier: Apache-2.0
// What a caller asks of the engine and what comes back: plain values, no tensors. A server sits on these.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"

namespace quadrille::engine {

using RequestId = uint64_t;

// temperature 0 is greedy (ties to the lower id). Filters apply in this order: repetition penalty, temperature, top-k,
// top-p, min-p; sampler.h defines each. The draw of a token depends on (seed, index of the token in the answer) and the
// logits alone.
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
  int64_t max_tokens = 256;     // length of the answer; 0: only the prompt is run (its log-probabilities, or for reuse)
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;          // end-of-sequence ids of the model and the caller's own
  std::vector<std::string> stop_strings;  // the text ends before the first of them to be complete
  bool ignore_stop_ids = false;
  // Log-probabilities are those of the model's own distribution, before penalty, temperature and filters.
  int32_t logprobs = -1;         // -1: none; n >= 0: of the chosen token and of the n best
  int32_t prompt_logprobs = -1;  // the same for the tokens of the prompt (from the second on)
  // Gets the logits [vocab] after each token of the prompt, in order, on the stepping thread, until the finish is
  // polled. With max_tokens 0 and without prompt_logprobs alone.
  std::function<void(std::span<const float> logits)> prompt_logits;
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
  std::vector<TokenOutput> tokens;         // new tokens of the answer; a stop id left out, those of a stop string not
  std::string text;                        // new text that is certain: whole characters, no part of a stop string
  std::vector<TokenOutput> prompt_tokens;  // once, when the prompt is through
  FinishReason finish = FinishReason::kNone;
  std::optional<Error> error;        // with kError
  int64_t cached_prompt_tokens = 0;  // prompt positions found by prefix reuse
};

// What bounds a request: properties of the model and of the engine around it.
struct RequestLimits {
  int64_t vocab_size = 0, max_positions = 0, num_pages = 0;
  bool has_text = false;  // there is a tokenizer, so stop strings can be found
};

// Errors: kInvalidArgument for values without a meaning, kCapacity (with the numbers) for what can never fit,
// kUnsupported for stop strings without a tokenizer.
Status check_request(const Request& request, const RequestLimits& limits);

}  // namespace quadrille::engine
