// SPDX-License-Identifier: Apache-2.0
// Statements: {% ... %} and the text between.
#include "model/tokenizer/template/parser.h"

#include <algorithm>

#include "model/tokenizer/template/parser_depth.h"
#include "model/tokenizer/template/runtime.h"

namespace quadrille::tokenizer::jinja {

bool Parser::is_any_name(Names names) const {
  return std::any_of(names.begin(), names.end(), [&](std::string_view name) { return is_name(name); });
}

bool Parser::skip_operator(std::string_view text) {
  if (!is_operator(text)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view text) {
  if (!is_name(text)) return false;
  next();
  return true;
}

std::string Parser::describe_current() const {
  switch (current().kind) {
    case Kind::kEnd:
      return "the end of the template";
    case Kind::kBlockEnd:
    case Kind::kVariableEnd:
      return "the end of the tag";
    case Kind::kString:
      return "a string";
    default:
      return fmt::format("'{}'", current().text);
  }
}

void Parser::fail(std::string_view text) const {
  fail_at(current().line, ErrorCode::kInvalidData, text);
}
void Parser::unsupported(std::string_view text) const {
  fail_at(current().line, ErrorCode::kUnsupported, fmt::format("{} is not supported", text));
}

void Parser::expect_operator(std::string_view text) {
  if (!skip_operator(text)) fail(fmt::format("expected '{}', found {}", text, describe_current()));
}

void Parser::expect_name(std::string_view text) {
  if (!skip_name(text)) fail(fmt::format("expected '{}', found {}", text, describe_current()));
}

std::string Parser::expect_identifier() {
  if (current().kind != Kind::kName) fail(fmt::format("expected a name, found {}", describe_current()));
  std::string name = current().text;
  next();
  return name;
}

void Parser::expect_block_end() {
  if (current().kind != Kind::kBlockEnd) fail(fmt::format("expected '%}}', found {}", describe_current()));
  next();
}

Body Parser::run() {
  return parse_body({}, "");
}

Statement Parser::make_statement(Statement::Kind kind) const {
  Statement statement;
  statement.kind = kind;
  statement.line = current().line;
  return statement;
}

Body Parser::parse_body(Names ends, std::string_view opener) {
  const DepthGuard guard(*this);
  Body body;
  while (true) {
    if (current().kind == Kind::kEnd) {
      if (ends.size() > 0) fail(fmt::format("{{% {} %}} without {{% {} %}}", opener, *(ends.end() - 1)));
      return body;
    }
    if (current().kind == Kind::kText) {
      body.push_back(make_statement(Statement::Kind::kText));
      body.back().text = current().text;
      next();
    } else if (current().kind == Kind::kVariableBegin) {
      body.push_back(make_statement(Statement::Kind::kOutput));
      next();
      body.back().expression = parse_tuple(true);
      if (current().kind != Kind::kVariableEnd) fail(fmt::format("expected '}}}}', found {}", describe_current()));
      next();
    } else {
      next();  // '{%'
      if (is_any_name(ends)) return body;
      body.push_back(parse_statement());
    }
  }
}

Body Parser::parse_until(std::string_view end, std::string_view opener) {
  Body body = parse_body({end}, opener);
  next();
  expect_block_end();
  return body;
}

Statement Parser::parse_statement() {
  if (current().kind != Kind::kName) fail(fmt::format("expected a tag, found {}", describe_current()));
  const std::string& name = current().text;
  if (name == "if") return parse_if();
  if (name == "for") return parse_for();
  if (name == "set") return parse_set();
  if (name == "macro") return parse_macro();
  if (name == "call") return parse_call_block();
  if (name == "filter") return parse_filter_block();
  if (name == "with") return parse_with();
  if (name == "generation") return parse_generation();
  if (name == "break" || name == "continue") {
    if (loops_ == 0) fail(fmt::format("{{% {} %}} outside of a loop", name));
    Statement statement = make_statement(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
    next();
    expect_block_end();
    return statement;
  }
  for (const std::string_view known : {"block", "extends", "include", "import", "from", "autoescape", "do", "trans"})
    if (name == known) unsupported(fmt::format("{{% {} %}}", name));
  fail(fmt::format("unknown tag {{% {} %}}", name));
}

Statement Parser::parse_if() {
  Statement statement = make_statement(Statement::Kind::kIf);
  next();
  while (true) {
    Branch branch;
    branch.condition = parse_tuple(false);
    expect_block_end();
    branch.body = parse_body({"elif", "else", "endif"}, "if");
    statement.branches.push_back(std::move(branch));
    if (skip_name("elif")) continue;
    if (skip_name("else")) {
      expect_block_end();
      statement.branches.push_back({nullptr, parse_body({"endif"}, "if")});
    }
    expect_name("endif");
    expect_block_end();
    return statement;
  }
}

Statement Parser::parse_for() {
  Statement statement = make_statement(Statement::Kind::kFor);
  next();
  statement.targets.push_back(parse_target(false));
  expect_name("in");
  statement.expression = parse_tuple(false);
  if (skip_name("if")) statement.condition = parse_expression();
  if (is_name("recursive")) unsupported("a recursive loop");
  expect_block_end();
  ++loops_;
  statement.branches.push_back({nullptr, parse_body({"else", "endfor"}, "for")});
  --loops_;
  if (skip_name("else")) {
    expect_block_end();
    statement.branches.push_back({nullptr, parse_body({"endfor"}, "for")});
  }
  expect_name("endfor");
  expect_block_end();
  return statement;
}

Statement Parser::parse_set() {
  Statement statement = make_statement(Statement::Kind::kSet);
  next();
  statement.targets.push_back(parse_target(true));
  if (skip_operator("=")) {
    statement.expression = parse_tuple(true);
    expect_block_end();
    return statement;
  }
  statement.kind = Statement::Kind::kSetBlock;
  if (is_operator("|")) statement.expression = parse_filter_chain(nullptr, true);
  expect_block_end();
  statement.body = parse_until("endset", "set");
  return statement;
}

Statement Parser::parse_macro() {
  Statement statement = make_statement(Statement::Kind::kMacro);
  next();
  statement.text = expect_identifier();
  statement.parameters = parse_parameters();
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  statement.body = parse_until("endmacro", "macro");
  loops_ = loops;
  return statement;
}

Statement Parser::parse_call_block() {
  Statement statement = make_statement(Statement::Kind::kCall);
  next();
  if (is_operator("(")) statement.parameters = parse_parameters();
  statement.expression = parse_expression();
  if (statement.expression->kind != Expression::Kind::kCall) fail("{% call %} needs a call");
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  statement.body = parse_until("endcall", "call");
  loops_ = loops;
  return statement;
}

Statement Parser::parse_filter_block() {
  Statement statement = make_statement(Statement::Kind::kFilter);
  next();
  statement.expression = parse_filter_chain(nullptr, false);
  expect_block_end();
  statement.body = parse_until("endfilter", "filter");
  return statement;
}

Statement Parser::parse_with() {
  Statement statement = make_statement(Statement::Kind::kWith);
  next();
  while (current().kind != Kind::kBlockEnd) {
    if (!statement.targets.empty()) expect_operator(",");
    statement.targets.push_back(parse_single_target(false));
    expect_operator("=");
    statement.values.push_back(parse_expression());
  }
  expect_block_end();
  statement.body = parse_until("endwith", "with");
  return statement;
}

// Marks what the model wrote, for training; the text is the same without it.
Statement Parser::parse_generation() {
  Statement statement = make_statement(Statement::Kind::kBlock);
  next();
  expect_block_end();
  statement.body = parse_until("endgeneration", "generation");
  return statement;
}

Target Parser::parse_single_target(bool with_attribute) {
  const DepthGuard guard(*this);
  Target target;
  if (skip_operator("(")) {
    target = parse_target(with_attribute);
    expect_operator(")");
    return target;
  }
  for (const std::string_view reserved : {"true", "false", "none", "True", "False", "None"})
    if (is_name(reserved)) fail(fmt::format("cannot assign to '{}'", reserved));
  target.name = expect_identifier();
  if (!with_attribute || !skip_operator(".")) return target;
  target.kind = Target::Kind::kAttribute;
  target.attribute = expect_identifier();
  return target;
}

Target Parser::parse_target(bool with_attribute) {
  Target first = parse_single_target(with_attribute);
  if (!is_operator(",")) return first;
  Target tuple;
  tuple.kind = Target::Kind::kTuple;
  tuple.parts.push_back(std::move(first));
  while (skip_operator(",")) {
    if (is_name("in") || is_operator("=") || is_operator(")")) break;
    tuple.parts.push_back(parse_single_target(with_attribute));
  }
  return tuple;
}

std::vector<Parameter> Parser::parse_parameters() {
  std::vector<Parameter> parameters;
  expect_operator("(");
  while (!is_operator(")")) {
    if (!parameters.empty()) expect_operator(",");
    Parameter parameter;
    parameter.name = expect_identifier();
    if (skip_operator("=")) {
      parameter.otherwise = parse_expression();
    } else if (!parameters.empty() && parameters.back().otherwise) {
      fail("a parameter without a default follows one with a default");
    }
    parameters.push_back(std::move(parameter));
  }
  next();
  return parameters;
}

}  // namespace quadrille::tokenizer::jinja
