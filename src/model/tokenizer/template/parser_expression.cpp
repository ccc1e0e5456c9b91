// SPDX-License-Identifier: Apache-2.0
// Expressions, by precedence from the loosest to the tightest.
#include <algorithm>

#include "model/tokenizer/template/parser.h"
#include "model/tokenizer/template/parser_depth.h"
#include "model/tokenizer/template/runtime.h"
#include "model/tokenizer/template/text.h"

namespace quadrille::tokenizer::jinja {

using K = Expression::Kind;

ExpressionPtr Parser::make(Expression::Kind kind, std::string name) const {
  auto made = std::make_unique<Expression>();
  made->kind = kind;
  made->line = current().line;
  made->name = std::move(name);
  return made;
}

void Parser::adopt(Expression& parent, ExpressionPtr child) const {
  if (child) parent.depth = std::max(parent.depth, child->depth + 1);
  if (parent.depth > kMaxExpressionDepth) fail("expression too long or nested too deep");
  parent.children.push_back(std::move(child));
}

void Parser::adopt_arguments(Expression& parent, std::vector<Argument> arguments) const {
  for (const Argument& argument : arguments) parent.depth = std::max(parent.depth, argument.value->depth + 1);
  if (parent.depth > kMaxExpressionDepth) fail("expression too long or nested too deep");
  parent.arguments = std::move(arguments);
}

ExpressionPtr Parser::binary(Expression::Kind kind, std::string name, ExpressionPtr left, ExpressionPtr right) const {
  ExpressionPtr made = make(kind, std::move(name));
  made->line = left->line;
  adopt(*made, std::move(left));
  adopt(*made, std::move(right));
  return made;
}

bool Parser::is_tuple_end() const {
  return current().kind == Kind::kVariableEnd || current().kind == Kind::kBlockEnd || is_operator(")") ||
         is_name("recursive") || is_name("if");
}

ExpressionPtr Parser::parse_tuple(bool with_condition, bool in_parentheses) {
  ExpressionPtr tuple = make(K::kTuple);
  bool has_comma = false;
  while (tuple->children.empty() || has_comma) {
    if (is_tuple_end() && (has_comma || in_parentheses)) break;
    adopt(*tuple, parse_expression(with_condition));
    if (!is_operator(",")) {
      if (!has_comma) return std::move(tuple->children[0]);
      break;
    }
    has_comma = true;
    next();
  }
  return tuple;
}

ExpressionPtr Parser::parse_expression(bool with_condition) {
  const DepthGuard guard(*this);
  return with_condition ? parse_conditional() : parse_or();
}

ExpressionPtr Parser::parse_conditional() {
  ExpressionPtr value = parse_or();
  while (skip_name("if")) {
    ExpressionPtr made = make(K::kConditional);
    adopt(*made, std::move(value));
    adopt(*made, parse_or());
    adopt(*made, skip_name("else") ? parse_expression() : nullptr);
    value = std::move(made);
  }
  return value;
}

ExpressionPtr Parser::parse_or() {
  ExpressionPtr left = parse_and();
  while (skip_name("or")) left = binary(K::kOr, "or", std::move(left), parse_and());
  return left;
}

ExpressionPtr Parser::parse_and() {
  ExpressionPtr left = parse_not();
  while (skip_name("and")) left = binary(K::kAnd, "and", std::move(left), parse_not());
  return left;
}

ExpressionPtr Parser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const DepthGuard guard(*this);
  ExpressionPtr made = make(K::kUnary, "not");
  next();
  adopt(*made, parse_not());
  return made;
}

ExpressionPtr Parser::parse_compare() {
  ExpressionPtr first = parse_sum();
  ExpressionPtr compare = make(K::kCompare);
  compare->line = first->line;
  adopt(*compare, std::move(first));
  while (true) {
    std::string op;
    for (const std::string_view text : {"==", "!=", "<=", ">=", "<", ">"})
      if (is_operator(text)) op = text;
    if (is_name("in")) op = "in";
    if (is_name("not") && ahead().kind == Kind::kName && ahead().text == "in") {
      op = "not in";
      next();
    }
    if (op.empty()) break;
    next();
    compare->operators.push_back(op);
    adopt(*compare, parse_sum());
  }
  return compare->operators.empty() ? std::move(compare->children[0]) : std::move(compare);
}

ExpressionPtr Parser::parse_sum() {
  ExpressionPtr left = parse_concat();
  while (is_operator("+") || is_operator("-")) {
    const std::string op = current().text;
    next();
    left = binary(K::kBinary, op, std::move(left), parse_concat());
  }
  return left;
}

ExpressionPtr Parser::parse_concat() {
  ExpressionPtr left = parse_product();
  while (skip_operator("~")) left = binary(K::kBinary, "~", std::move(left), parse_product());
  return left;
}

ExpressionPtr Parser::parse_product() {
  ExpressionPtr left = parse_power();
  while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
    const std::string op = current().text;
    next();
    left = binary(K::kBinary, op, std::move(left), parse_power());
  }
  return left;
}

ExpressionPtr Parser::parse_power() {
  ExpressionPtr left = parse_unary();
  while (skip_operator("**")) left = binary(K::kBinary, "**", std::move(left), parse_unary());
  return left;
}

ExpressionPtr Parser::parse_unary(bool with_filter) {
  const DepthGuard guard(*this);
  ExpressionPtr value;
  if (is_operator("-") || is_operator("+")) {
    value = make(K::kUnary, current().text);
    next();
    adopt(*value, parse_unary(false));
  } else {
    value = parse_primary();
  }
  value = parse_postfix(std::move(value));
  return with_filter ? parse_filters_and_tests(std::move(value)) : std::move(value);
}

ExpressionPtr Parser::parse_primary() {
  const Token& token = current();
  if (token.kind == Kind::kName) {
    ExpressionPtr made = make(K::kConstant);
    if (token.text == "true" || token.text == "True") {
      made->constant = Value(true);
    } else if (token.text == "false" || token.text == "False") {
      made->constant = Value(false);
    } else if (token.text == "none" || token.text == "None") {
      made->constant = Value(None{});
    } else {
      made->kind = K::kName;
      made->name = token.text;
    }
    next();
    return made;
  }
  if (token.kind == Kind::kString) {
    ExpressionPtr made = make(K::kConstant);
    std::string text;
    for (; current().kind == Kind::kString; next()) text += current().text;
    made->constant = Value(std::move(text));
    return made;
  }
  if (token.kind == Kind::kInteger || token.kind == Kind::kFloat) return parse_number();
  if (skip_operator("(")) {
    ExpressionPtr made = parse_tuple(true, true);
    expect_operator(")");
    return made;
  }
  if (is_operator("[")) return parse_list();
  if (is_operator("{")) return parse_dict();
  fail(fmt::format("expected an expression, found {}", describe_current()));
}

ExpressionPtr Parser::parse_number() {
  ExpressionPtr made = make(K::kConstant);
  if (current().kind == Kind::kInteger) {
    int64_t value = 0;
    if (!parse_integer(current().text, 10, value)) unsupported(fmt::format("the integer {}", current().text));
    made->constant = Value(value);
  } else {
    double value = 0;
    if (!parse_float(current().text, value)) unsupported(fmt::format("the number {}", current().text));
    made->constant = Value(value);
  }
  next();
  return made;
}

ExpressionPtr Parser::parse_list() {
  ExpressionPtr made = make(K::kList);
  expect_operator("[");
  while (!is_operator("]")) {
    if (!made->children.empty()) expect_operator(",");
    if (is_operator("]")) break;
    adopt(*made, parse_expression());
  }
  next();
  return made;
}

ExpressionPtr Parser::parse_dict() {
  ExpressionPtr made = make(K::kDict);
  expect_operator("{");
  while (!is_operator("}")) {
    if (!made->children.empty()) expect_operator(",");
    if (is_operator("}")) break;
    adopt(*made, parse_expression());
    expect_operator(":");
    adopt(*made, parse_expression());
  }
  next();
  return made;
}

ExpressionPtr Parser::parse_postfix(ExpressionPtr value) {
  while (true) {
    if (is_operator(".")) {
      value = parse_attribute(std::move(value));
    } else if (is_operator("[")) {
      value = parse_index(std::move(value));
    } else if (is_operator("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr Parser::parse_attribute(ExpressionPtr value) {
  expect_operator(".");
  if (current().kind == Kind::kInteger) return binary(K::kIndex, "", std::move(value), parse_number());
  ExpressionPtr made = make(K::kAttribute);
  made->name = expect_identifier();
  adopt(*made, std::move(value));
  return made;
}

ExpressionPtr Parser::parse_index(ExpressionPtr value) {
  ExpressionPtr made = make(K::kIndex);
  expect_operator("[");
  adopt(*made, std::move(value));
  const auto part = [&]() -> ExpressionPtr {
    return is_operator(":") || is_operator("]") ? nullptr : parse_expression();
  };
  ExpressionPtr first = part();
  if (is_operator(",")) unsupported("an index of several parts");
  if (!is_operator(":")) {
    if (!first) fail("expected an index");
    adopt(*made, std::move(first));
    expect_operator("]");
    return made;
  }
  made->kind = K::kSlice;
  adopt(*made, std::move(first));
  next();
  adopt(*made, part());
  adopt(*made, skip_operator(":") ? part() : nullptr);
  expect_operator("]");
  return made;
}

std::vector<Argument> Parser::parse_arguments() {
  std::vector<Argument> arguments;
  expect_operator("(");
  while (!is_operator(")")) {
    if (!arguments.empty()) expect_operator(",");
    if (is_operator(")")) break;
    if (is_operator("*") || is_operator("**")) unsupported("a call with * or **");
    Argument argument;
    if (current().kind == Kind::kName && ahead().kind == Kind::kOperator && ahead().text == "=") {
      argument.keyword = expect_identifier();
      next();
    } else if (!arguments.empty() && !arguments.back().keyword.empty()) {
      fail("a positional argument follows a keyword argument");
    }
    argument.value = parse_expression();
    arguments.push_back(std::move(argument));
  }
  next();
  return arguments;
}

ExpressionPtr Parser::parse_call(ExpressionPtr callee) {
  ExpressionPtr made = make(K::kCall);
  adopt(*made, std::move(callee));
  adopt_arguments(*made, parse_arguments());
  return made;
}

ExpressionPtr Parser::parse_filters_and_tests(ExpressionPtr value) {
  while (true) {
    if (is_operator("|")) {
      value = parse_filter_chain(std::move(value), true);
    } else if (is_name("is")) {
      value = parse_test(std::move(value));
    } else if (is_operator("(")) {
      value = parse_call(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr Parser::parse_filter_chain(ExpressionPtr value, bool has_bar) {
  for (; !has_bar || is_operator("|"); has_bar = true) {
    if (has_bar) next();
    ExpressionPtr made = make(K::kFilter);
    made->name = expect_identifier();
    while (skip_operator(".")) made->name += "." + expect_identifier();
    adopt(*made, std::move(value));
    if (is_operator("(")) adopt_arguments(*made, parse_arguments());
    value = std::move(made);
  }
  return value;
}

ExpressionPtr Parser::parse_test(ExpressionPtr value) {
  expect_name("is");
  const bool negated = skip_name("not");
  ExpressionPtr made = make(K::kTest);
  made->name = expect_identifier();
  adopt(*made, std::move(value));
  const bool has_operand = current().kind == Kind::kName || current().kind == Kind::kString ||
                           current().kind == Kind::kInteger || current().kind == Kind::kFloat || is_operator("[") ||
                           is_operator("{");
  if (is_operator("(")) {
    adopt_arguments(*made, parse_arguments());
  } else if (has_operand && !is_any_name({"else", "or", "and", "if", "is", "recursive", "in", "not"})) {
    std::vector<Argument> arguments(1);
    arguments[0].value = parse_postfix(parse_primary());
    adopt_arguments(*made, std::move(arguments));
  } else if (is_name("is")) {
    fail("tests cannot be chained with 'is'");
  }
  if (!negated) return made;
  ExpressionPtr inverse = make(K::kUnary, "not");
  adopt(*inverse, std::move(made));
  return inverse;
}

}  // namespace quadrille::tokenizer::jinja
