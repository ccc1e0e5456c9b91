// SPDX-License-Identifier: Apache-2.0
// Bounds how deep the parser, and the trees that it makes, may nest. For the two units of the parser.
#pragma once

#include "model/tokenizer/template/parser.h"

namespace quadrille::tokenizer::jinja {

// Of nested brackets and blocks.
inline constexpr int kMaxParserDepth = 100;
// Of an expression tree: a chain like a + b + c ... is as deep as it is long.
inline constexpr int kMaxExpressionDepth = 250;

class Parser::DepthGuard {
 public:
  explicit DepthGuard(Parser& parser) : parser_(parser) {
    if (++parser_.depth_ > kMaxParserDepth) {
      --parser_.depth_;
      parser_.fail("nested too deep");
    }
  }
  ~DepthGuard() { --parser_.depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Parser& parser_;
};

}  // namespace quadrille::tokenizer::jinja
