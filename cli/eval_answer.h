// SPDX-License-Identifier: Apache-2.0
// Finds the answer in what a model wrote, as the field's harnesses do it: first the agreed mark, then a fallback.
#pragma once

#include <string>
#include <string_view>

namespace quadrille::cli {

enum class AnswerForm {
  kMarked,    // "#### N", "answer is (X)"
  kFallback,  // the last number, "Answer: X", the last letter that stands alone
  kNone,
};

struct ExtractedAnswer {
  AnswerForm form = AnswerForm::kNone;
  std::string value;  // a number as normalised_number() has it, or a letter
};

// The last "#### N" that a number follows, else the last number of the text. A '-' behind a digit, a letter or a
// closing bracket is a minus between two numbers, not a sign.
ExtractedAnswer extract_number(std::string_view text);

// The first "answer is (X)" (brackets, '*' and ':' optional), else the last "Answer: X", else the last of the letters
// that stands alone. X is one of the first `num_options` capital letters and no part of a word.
ExtractedAnswer extract_letter(std::string_view text, size_t num_options);

// "$1,234.50" -> "1234.5", "+007" -> "7", "-0" -> "0"; "" for what is no number.
std::string normalised_number(std::string_view text);

}  // namespace quadrille::cli
