// SPDX-License-Identifier: Apache-2.0
// Decides whether a request can be run at all; called by Engine::submit before anything is queued.
#include "engine/request.h"

#include <cmath>

#include "model/forward.h"

namespace quadrille::engine {
namespace {

Status check_sampling(const SamplingParams& s) {
  const auto refuse = [](const char* name, double value, const char* legal) {
    return make_error(ErrorCode::kInvalidArgument, "sampling: {} is {}, expected {}", name, value, legal);
  };
  if (!(s.temperature >= 0) || std::isinf(s.temperature)) {
    return refuse("temperature", s.temperature, "a finite number >= 0 (0 is greedy)");
  }
  if (s.top_k < 0) return refuse("top_k", s.top_k, "an integer >= 0 (0 is off)");
  if (!(s.top_p > 0 && s.top_p <= 1)) return refuse("top_p", s.top_p, "a number in (0, 1] (1 is off)");
  if (!(s.min_p >= 0 && s.min_p <= 1)) return refuse("min_p", s.min_p, "a number in [0, 1] (0 is off)");
  if (!(s.repetition_penalty > 0) || std::isinf(s.repetition_penalty)) {
    return refuse("repetition_penalty", s.repetition_penalty, "a finite number > 0 (1 is off)");
  }
  return {};
}

Status check_length(const Request& request, const RequestLimits& limits) {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt == 0)
    return make_error(ErrorCode::kInvalidArgument, "the prompt is empty, expected at least one token id");
  if (request.max_tokens < 0) {
    return make_error(ErrorCode::kInvalidArgument, "max_tokens is {}, expected an integer >= 0", request.max_tokens);
  }
  // Compared by subtraction: max_tokens may be as large as its type allows.
  if (prompt > limits.max_positions || request.max_tokens > limits.max_positions - prompt) {
    return make_error(ErrorCode::kCapacity,
                      "prompt of {} tokens and max_tokens {}: together beyond the {} positions of the model; shorten "
                      "the prompt or ask for at most {} tokens",
                      prompt, request.max_tokens, limits.max_positions,
                      prompt < limits.max_positions ? limits.max_positions - prompt : 0);
  }
  // The last token of an answer is never run, so it takes no position in the cache.
  const int64_t positions = prompt + (request.max_tokens > 0 ? request.max_tokens - 1 : 0);
  const int64_t pages = (positions + model::kPagePositions - 1) / model::kPagePositions;
  if (pages > limits.num_pages) {
    return make_error(ErrorCode::kCapacity,
                      "prompt of {} tokens and max_tokens {} need {} pages of {} positions, the whole key/value cache "
                      "has {}; shorten the request or give the cache more memory",
                      prompt, request.max_tokens, pages, model::kPagePositions, limits.num_pages);
  }
  return {};
}

Status check_stops(const Request& request, const RequestLimits& limits) {
  if (!request.stop_strings.empty() && !limits.has_text) {
    return make_error(ErrorCode::kUnsupported,
                      "stop strings need a tokenizer, and this engine was made without one; use stop ids");
  }
  for (size_t i = 0; i < request.stop_strings.size(); ++i) {
    const std::string& stop = request.stop_strings[i];
    if (stop.empty()) return make_error(ErrorCode::kInvalidArgument, "stop string {} is empty", i);
    if ((static_cast<unsigned char>(stop[0]) & 0xC0) == 0x80) {
      return make_error(ErrorCode::kInvalidArgument,
                        "stop string {} begins inside a UTF-8 character (byte 0x{:02X}), expected whole characters", i,
                        static_cast<unsigned>(static_cast<unsigned char>(stop[0])));
    }
  }
  return {};
}

Status check_logprobs(const char* name, int32_t count, int64_t vocab_size) {
  if (count >= -1 && count <= vocab_size) return {};
  return make_error(ErrorCode::kInvalidArgument, "{} is {}, expected -1 (none) to {} (the vocabulary)", name, count,
                    vocab_size);
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "unknown";
}

Status check_request(const Request& request, const RequestLimits& limits) {
  QD_TRY_STATUS(check_length(request, limits));
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    const int32_t id = request.prompt[i];
    if (id >= 0 && id < limits.vocab_size) continue;
    return make_error(ErrorCode::kInvalidArgument, "prompt token {} is id {}, the model's vocabulary is 0 to {}", i, id,
                      limits.vocab_size - 1);
  }
  QD_TRY_STATUS(check_sampling(request.sampling));
  QD_TRY_STATUS(check_stops(request, limits));
  QD_TRY_STATUS(check_logprobs("logprobs", request.logprobs, limits.vocab_size));
  QD_TRY_STATUS(check_logprobs("prompt_logprobs", request.prompt_logprobs, limits.vocab_size));
  if (request.prompt_logits == nullptr || (request.max_tokens == 0 && request.prompt_logprobs < 0)) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "prompt_logits goes with max_tokens 0 and prompt_logprobs -1, found {} and {}", request.max_tokens,
                    request.prompt_logprobs);
}

}  // namespace quadrille::engine
