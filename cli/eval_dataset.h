// SPDX-License-Identifier: Apache-2.0
// Problems of the published JSONL layouts: GSM8K (question, answer with "#### N" at its end), MMLU-Pro (question_id,
// question, options, answer, answer_index, cot_content, category, src) and plain text. Read by eval and by run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace quadrille::cli {

struct Problem {
  std::string id;                    // question_id, or the number of the line
  std::string question;              // as in the file
  std::vector<std::string> options;  // MMLU-Pro; empty in GSM8K
  std::string solution;              // worked answer, where the file has one: an example for few-shot prompts
  std::string expected;              // the right answer: a number, normalised, or a letter
  std::string category;              // "" where the file has none
  std::optional<int64_t> steps;      // field "steps"; in GSM8K else the lines of the answer before "####"
};

// At most `limit` problems (0: all). Blank lines are skipped. Errors name file, line and key: kNotFound, kIo,
// kInvalidData (also for a file without a problem).
Result<std::vector<Problem>> read_gsm8k(const std::string& path, int64_t limit);
Result<std::vector<Problem>> read_mmlu_pro(const std::string& path, int64_t limit);
// Either layout: MMLU-Pro where the first problem has 'options'.
Result<std::vector<Problem>> read_any_problems(const std::string& path, int64_t limit);
// One text a line from `text` where the file's name ends in .jsonl, else the whole file as one text.
Result<std::vector<std::string>> read_texts(const std::string& path, int64_t limit);

// "A" for 0, up to "Z".
std::string option_letter(size_t index);
// What is asked: GSM8K: the question; MMLU-Pro: the layout of its own evaluation ("Question:", "Options:", lines
// "A. ...", "Answer: Let's think step by step.").
std::string question_text(const Problem& problem);

}  // namespace quadrille::cli
