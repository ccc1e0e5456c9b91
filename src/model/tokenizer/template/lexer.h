// SPDX-License-Identifier: Apache-2.0
// A template as tokens: text, and what stands inside of {{ }} and {% %}. All rules about white space around tags are
// applied here. Called by the parser.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quadrille::tokenizer::jinja {

struct Token {
  enum class Kind {
    kText,
    kVariableBegin,
    kVariableEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,  // text without quotes and escapes
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind;
  std::string text;
  int line;
};

// Throws TemplateFailure.
std::vector<Token> tokenize(std::string_view source);

}  // namespace quadrille::tokenizer::jinja
