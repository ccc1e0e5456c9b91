// SPDX-License-Identifier: Apache-2.0
// Drives an engine from one thread: one streamed answer, or many requests with a window of running ones. With ranks
// each has its engine over its shard, all drive theirs alike, and they agree at every step whether to stop.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "engine/engine.h"
#include "parallel/communicator.h"

namespace quadrille::cli {

struct Answer {
  std::string text;
  std::vector<engine::TokenOutput> tokens;
  std::vector<engine::TokenOutput> prompt_tokens;  // where the request asked for prompt_logprobs
  engine::FinishReason finish = engine::FinishReason::kNone;
};

// Gets each new piece of text; false stops the answer (its reader went away).
using TextSink = std::function<bool(std::string_view)>;

// Runs one request to its end. Ctrl-C cancels it: the answer then holds what came until then, with kCancelled.
Result<Answer> generate(engine::Engine& engine, engine::Request request, const TextSink& sink = {},
                        parallel::Communicator* ranks = nullptr);

// Runs all requests, at most `window` at a time, and hands each answer over as it ends (in any order). Stops early,
// without an error, on Ctrl-C or when `take` returns false; answers cut off by that are not handed over.
Status generate_all(engine::Engine& engine, std::vector<engine::Request> requests, int64_t window,
                    const std::function<bool(size_t index, Answer answer)>& take,
                    parallel::Communicator* ranks = nullptr);

}  // namespace quadrille::cli
