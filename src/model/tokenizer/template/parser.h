// SPDX-License-Identifier: Apache-2.0
// From tokens to the tree. Statements are in parser.cpp, expressions in parser_expression.cpp.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/template/ast.h"
#include "model/tokenizer/template/lexer.h"

namespace quadrille::tokenizer::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  // Throws TemplateFailure.
  Body run();

 private:
  using Kind = Token::Kind;
  using Names = std::initializer_list<std::string_view>;
  class DepthGuard;

  // Tokens.
  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  void next() { at_ = std::min(at_ + 1, tokens_.size() - 1); }
  bool is_operator(std::string_view text) const { return current().kind == Kind::kOperator && current().text == text; }
  bool is_name(std::string_view text) const { return current().kind == Kind::kName && current().text == text; }
  bool is_any_name(Names names) const;
  bool skip_operator(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_operator(std::string_view text);
  void expect_name(std::string_view text);
  std::string expect_identifier();
  void expect_block_end();
  std::string describe_current() const;
  [[noreturn]] void fail(std::string_view text) const;
  [[noreturn]] void unsupported(std::string_view text) const;

  // Statements.
  // Up to a tag that begins with one of `ends`, whose name stays the current token; the end of the template when
  // `ends` is empty.
  Body parse_body(Names ends, std::string_view opener);
  Statement parse_statement();
  Statement make_statement(Statement::Kind kind) const;
  Statement parse_if();
  Statement parse_for();
  Statement parse_set();
  Statement parse_macro();
  Statement parse_call_block();
  Statement parse_filter_block();
  Statement parse_with();
  Statement parse_generation();
  // The body up to {% NAME %}, with that tag.
  Body parse_until(std::string_view end, std::string_view opener);
  Target parse_target(bool with_attribute);
  Target parse_single_target(bool with_attribute);
  std::vector<Parameter> parse_parameters();

  // Expressions, loosest first.
  ExpressionPtr parse_tuple(bool with_condition, bool in_parentheses = false);
  ExpressionPtr parse_expression(bool with_condition = true);
  ExpressionPtr parse_conditional();
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concat();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filter = true);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_number();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_postfix(ExpressionPtr value);
  ExpressionPtr parse_filters_and_tests(ExpressionPtr value);
  // The filters behind a value that may be null (a block). `has_bar`: the first '|' stands there still.
  ExpressionPtr parse_filter_chain(ExpressionPtr value, bool has_bar);
  ExpressionPtr parse_test(ExpressionPtr value);
  ExpressionPtr parse_call(ExpressionPtr callee);
  ExpressionPtr parse_index(ExpressionPtr value);
  ExpressionPtr parse_attribute(ExpressionPtr value);
  std::vector<Argument> parse_arguments();
  bool is_tuple_end() const;

  ExpressionPtr make(Expression::Kind kind, std::string name = "") const;
  // Adds a child and keeps the depth of the tree bounded.
  void adopt(Expression& parent, ExpressionPtr child) const;
  void adopt_arguments(Expression& parent, std::vector<Argument> arguments) const;
  ExpressionPtr binary(Expression::Kind kind, std::string name, ExpressionPtr left, ExpressionPtr right) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;
};

}  // namespace quadrille::tokenizer::jinja
