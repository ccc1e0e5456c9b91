// SPDX-License-Identifier: Apache-2.0
// Expressions.
#include <algorithm>

#include "model/tokenizer/template/builtins.h"
#include "model/tokenizer/template/interpreter.h"
#include "model/tokenizer/template/interpreter_guard.h"
#include "model/tokenizer/template/operators.h"

namespace quadrille::tokenizer::jinja {

Value Interpreter::lookup(const std::string& name) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto place = scope->names.find(name);
    if (place != scope->names.end()) return place->second;
  }
  if (std::optional<Value> function = find_function(runtime_, name)) return *function;
  return runtime_.undefined(fmt::format("'{}' is undefined", name));
}

Value Interpreter::evaluate(const Expression& expression) {
  using Kind = Expression::Kind;
  const DepthGuard guard(*this);
  runtime_.set_line(expression.line);
  runtime_.charge(1);
  const auto child = [&](size_t i) { return evaluate(*expression.children[i]); };
  switch (expression.kind) {
    case Kind::kConstant:
      return expression.constant;
    case Kind::kName:
      return lookup(expression.name);
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
      return evaluate_collection(expression);
    case Kind::kUnary: {
      const Value value = child(0);
      if (expression.name == "not") return Value(!value.truth());
      if (expression.name == "-") return negate(runtime_, value);
      if (!value.is_number()) runtime_.fail(fmt::format("operator + does not work for {}", value.type_name()));
      return value;
    }
    case Kind::kBinary: {
      const Value left = child(0);
      const Value right = child(1);
      runtime_.set_line(expression.line);
      return binary_operation(runtime_, expression.name, left, right);
    }
    case Kind::kAnd: {
      Value left = child(0);
      return left.truth() ? child(1) : left;
    }
    case Kind::kOr: {
      Value left = child(0);
      return left.truth() ? left : child(1);
    }
    case Kind::kCompare:
      return evaluate_compare(expression);
    case Kind::kConditional:
      if (child(1).truth()) return child(0);
      if (expression.children[2]) return child(2);
      return runtime_.undefined("the inline if has no else and its condition is false");
    case Kind::kAttribute:
      return attribute_of(runtime_, child(0), expression.name);
    case Kind::kIndex: {
      const Value value = child(0);
      return index_value(runtime_, value, child(1));
    }
    case Kind::kSlice:
      return evaluate_slice(expression);
    case Kind::kCall:
    case Kind::kFilter:
    case Kind::kTest:
      return evaluate_call(expression);
  }
  return Value();
}

// A call, filter or test: something applied with arguments.
Value Interpreter::evaluate_call(const Expression& expression) {
  const Value subject = expression.children[0] ? evaluate(*expression.children[0]) : *block_input_;
  Arguments arguments = evaluate_arguments(expression);
  runtime_.set_line(expression.line);
  if (expression.kind == Expression::Kind::kCall) return call_value(runtime_, subject, arguments);
  if (expression.kind == Expression::Kind::kFilter) return run_filter(runtime_, expression.name, subject, arguments);
  return Value(run_test(runtime_, expression.name, subject, arguments));
}

Value Interpreter::evaluate_collection(const Expression& expression) {
  std::vector<Value> values;
  for (const ExpressionPtr& child : expression.children) values.push_back(evaluate(*child));
  if (expression.kind != Expression::Kind::kDict)
    return runtime_.list(std::move(values), expression.kind == Expression::Kind::kTuple);
  std::vector<std::pair<Value, Value>> items;
  for (size_t i = 0; i + 1 < values.size(); i += 2) items.emplace_back(std::move(values[i]), std::move(values[i + 1]));
  return runtime_.dict(std::move(items));
}

Value Interpreter::evaluate_compare(const Expression& expression) {
  Value left = evaluate(*expression.children[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.children[i + 1]);
    runtime_.set_line(expression.line);
    const std::string& op = expression.operators[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equal(runtime_, left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(runtime_, right, left) == (op == "in");
    } else {
      const int order = compare(runtime_, left, right, op);
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Interpreter::evaluate_slice(const Expression& expression) {
  const Value value = evaluate(*expression.children[0]);
  Value bounds[3];
  const Value* given[3] = {};
  for (size_t i = 0; i < 3; ++i) {
    if (!expression.children[i + 1]) continue;
    bounds[i] = evaluate(*expression.children[i + 1]);
    given[i] = &bounds[i];
  }
  runtime_.set_line(expression.line);
  return slice_value(runtime_, value, given[0], given[1], given[2]);
}

Arguments Interpreter::evaluate_arguments(const Expression& expression) {
  Arguments arguments;
  for (const Argument& argument : expression.arguments) {
    Value value = evaluate(*argument.value);
    if (argument.keyword.empty()) {
      arguments.positional.push_back(std::move(value));
    } else {
      arguments.keywords.emplace_back(argument.keyword, std::move(value));
    }
  }
  return arguments;
}

}  // namespace quadrille::tokenizer::jinja
