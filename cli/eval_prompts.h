// SPDX-License-Identifier: Apache-2.0
// From a problem to the tokens a model reads: chat template or plain text, worked examples in front where asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/eval_dataset.h"
#include "core/result.h"
#include "session/text_model.h"

namespace quadrille::cli {

struct PromptOptions {
  bool raw = false;       // plain text even where the tokenizer has a chat template
  bool instruct = false;  // say how to answer: for models that were not trained on this layout
  std::string system;     // system message; "": none
  int64_t shots = 0;      // worked examples in front, of the same category where there are any
};

// The prompts of all problems. `examples` holds what the shots are taken from. Errors name the problem.
Result<std::vector<std::vector<int32_t>>> make_prompts(const session::TextModel& text,
                                                       const std::vector<Problem>& problems,
                                                       const std::vector<Problem>& examples,
                                                       const PromptOptions& options);

// Plain-text prompts have no end-of-turn token: the answer ends where the model would ask the next question itself.
std::vector<std::string> plain_stop_strings();

}  // namespace quadrille::cli
