// SPDX-License-Identifier: Apache-2.0
// Statements.
#include "model/tokenizer/template/interpreter.h"

#include <algorithm>

#include "model/tokenizer/template/interpreter_guard.h"
#include "model/tokenizer/template/operators.h"

namespace quadrille::tokenizer::jinja {

std::string Interpreter::run(std::vector<std::pair<std::string, Value>> variables) {
  std::string text;
  out_ = &text;
  scope_ = new_scope(nullptr);
  for (auto& [name, value] : variables) scope_->names[name] = std::move(value);
  run_body(program_.body);
  // Macros sit in scopes and refer to values; nothing refers back once all are empty.
  for (const auto& scope : scopes_) scope->names.clear();
  return text;
}

Scope* Interpreter::new_scope(Scope* parent) {
  runtime_.charge_bytes(sizeof(Scope));
  scopes_.push_back(std::make_unique<Scope>());
  scopes_.back()->parent = parent;
  return scopes_.back().get();
}

void Interpreter::drop_scope(Scope* scope) {
  if (!scope->is_captured && scopes_.back().get() == scope) scopes_.pop_back();
}

Interpreter::Flow Interpreter::run_body(const Body& body) {
  const DepthGuard guard(*this);
  for (const Statement& statement : body)
    if (const Flow flow = run_statement(statement); flow != Flow::kNormal) return flow;
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run_statement(const Statement& statement) {
  using Kind = Statement::Kind;
  runtime_.set_line(statement.line);
  runtime_.charge(1);
  switch (statement.kind) {
    case Kind::kText:
    case Kind::kOutput:
      run_output(statement);
      return Flow::kNormal;
    case Kind::kIf:
      return run_if(statement);
    case Kind::kFor:
      return run_for(statement);
    case Kind::kSet:
    case Kind::kSetBlock:
      run_set(statement);
      return Flow::kNormal;
    case Kind::kMacro:
      scope_->names[statement.text] = make_macro(statement.text, statement.parameters, statement.body);
      return Flow::kNormal;
    case Kind::kCall:
      run_call_block(statement);
      return Flow::kNormal;
    case Kind::kFilter:
      write(captured_body(statement.body, statement.expression.get()));
      return Flow::kNormal;
    case Kind::kWith:
      return run_with(statement);
    case Kind::kBlock:
      return run_body(statement.body);
    case Kind::kBreak:
      return Flow::kBreak;
    case Kind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

void Interpreter::write(const Value& value) {
  append_text(runtime_, value, *out_);
  if (out_->size() > runtime_.limits().output_bytes)
    fail_at(runtime_.line(), ErrorCode::kCapacity,
            fmt::format("the template writes more than {} bytes", runtime_.limits().output_bytes));
}

void Interpreter::run_output(const Statement& statement) {
  if (statement.kind == Statement::Kind::kOutput) {
    write(evaluate(*statement.expression));
    return;
  }
  runtime_.charge_bytes(statement.text.size());
  *out_ += statement.text;
}

Interpreter::Flow Interpreter::run_if(const Statement& statement) {
  for (const Branch& branch : statement.branches)
    if (!branch.condition || evaluate(*branch.condition).truth()) return run_body(branch.body);
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run_for(const Statement& statement) {
  const Value source = evaluate(*statement.expression);
  auto loop = std::make_shared<Loop>();
  loop->items = elements_of(runtime_, source);
  loop->depth0 = loop_depth_;
  runtime_.charge_bytes(loop->items.size() * sizeof(Value));
  const Target& target = statement.targets[0];
  if (statement.condition) {
    std::vector<Value> kept;
    for (const Value& item : loop->items) {
      const ScopeGuard scope(*this, scope_);
      assign(target, item);
      if (evaluate(*statement.condition).truth()) kept.push_back(item);
    }
    loop->items = std::move(kept);
  }
  const Value loop_value(loop);
  bool reached_end = false;  // of some iteration: what decides about else, so break and continue count
  const LoopGuard guard(*this, *loop);
  for (; loop->index < loop->items.size(); ++loop->index) {
    const ScopeGuard scope(*this, scope_);
    runtime_.charge(1);
    assign(target, loop->items[loop->index]);
    scope_->names["loop"] = loop_value;
    const Flow flow = run_body(statement.branches[0].body);
    if (flow == Flow::kBreak) break;
    reached_end = reached_end || flow == Flow::kNormal;
  }
  if (reached_end || statement.branches.size() < 2) return Flow::kNormal;
  const ScopeGuard scope(*this, scope_);
  return run_body(statement.branches[1].body);
}

void Interpreter::assign(const Target& target, const Value& value) {
  if (target.kind == Target::Kind::kName) {
    scope_->names[target.name] = value;
    return;
  }
  if (target.kind == Target::Kind::kAttribute) {
    const Value owner = lookup(target.name);
    runtime_.require_defined(owner);
    if (!owner.is_namespace())
      runtime_.fail(fmt::format("cannot set the attribute '{}' of a {}: only of a namespace", target.attribute,
                                owner.type_name()));
    owner.ns().attributes[target.attribute] = value;
    return;
  }
  if (!value.is_list() && !value.is_string() && !value.is_dict()) {
    runtime_.require_defined(value);
    runtime_.fail(fmt::format("cannot unpack a {} into {} names", value.type_name(), target.parts.size()));
  }
  const std::vector<Value> parts = elements_of(runtime_, value);
  if (parts.size() != target.parts.size())
    runtime_.fail(fmt::format("cannot unpack {} values into {} names", parts.size(), target.parts.size()));
  for (size_t i = 0; i < parts.size(); ++i) assign(target.parts[i], parts[i]);
}

void Interpreter::run_set(const Statement& statement) {
  const bool is_block = statement.kind == Statement::Kind::kSetBlock;
  const Value value =
      is_block ? captured_body(statement.body, statement.expression.get()) : evaluate(*statement.expression);
  runtime_.set_line(statement.line);
  assign(statement.targets[0], value);
}

Value Interpreter::captured_body(const Body& body, const Expression* filter) {
  Value text;
  {
    const ScopeGuard scope(*this, scope_);
    Capture capture(*this);
    run_body(body);
    text = runtime_.text(capture.take());
  }
  if (filter == nullptr) return text;
  const Value* saved = std::exchange(block_input_, &text);
  Value filtered = evaluate(*filter);
  block_input_ = saved;
  return filtered;
}

Interpreter::Flow Interpreter::run_with(const Statement& statement) {
  std::vector<Value> values;
  for (const ExpressionPtr& value : statement.values) values.push_back(evaluate(*value));
  const ScopeGuard scope(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) assign(statement.targets[i], values[i]);
  return run_body(statement.body);
}

void Interpreter::run_call_block(const Statement& statement) {
  const Expression& call = *statement.expression;
  const Value callee = evaluate(*call.children[0]);
  Arguments arguments = evaluate_arguments(call);
  arguments.keywords.emplace_back("caller", make_macro("caller", statement.parameters, statement.body));
  write(call_value(runtime_, callee, arguments));
}

Value Interpreter::make_macro(const std::string& name, const std::vector<Parameter>& parameters, const Body& body) {
  Scope* outer = scope_;
  for (Scope* scope = outer; scope != nullptr; scope = scope->parent) scope->is_captured = true;
  return runtime_.callable(name, [this, outer, name, &parameters, &body](Runtime&, Arguments& arguments) {
    return call_macro(name, parameters, body, outer, arguments);
  });
}

Value Interpreter::call_macro(const std::string& name, const std::vector<Parameter>& parameters, const Body& body,
                              Scope* outer, Arguments& arguments) {
  const DepthGuard guard(*this);
  const ScopeGuard scope(*this, outer);
  bind_parameters(name, parameters, arguments);
  Capture capture(*this);
  run_body(body);
  return runtime_.text(capture.take());
}

void Interpreter::bind_parameters(const std::string& name, const std::vector<Parameter>& parameters,
                                  Arguments& arguments) {
  if (arguments.positional.size() > parameters.size())
    runtime_.fail(fmt::format("macro '{}' takes at most {} arguments, {} are given", name, parameters.size(),
                              arguments.positional.size()));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& parameter = parameters[i];
    const auto given = std::find_if(arguments.keywords.begin(), arguments.keywords.end(),
                                    [&](const auto& keyword) { return keyword.first == parameter.name; });
    const bool is_named = given != arguments.keywords.end();
    Value value = runtime_.undefined(fmt::format("parameter '{}' was not provided", parameter.name));
    if (i < arguments.positional.size()) {
      if (is_named) runtime_.fail(fmt::format("macro '{}' gets the argument '{}' twice", name, parameter.name));
      value = arguments.positional[i];
    } else if (is_named) {
      value = given->second;
    } else if (parameter.otherwise) {
      value = evaluate(*parameter.otherwise);
    }
    if (is_named) arguments.keywords.erase(given);
    scope_->names[parameter.name] = value;
  }
  for (const auto& [keyword, value] : arguments.keywords) {
    if (keyword != "caller") runtime_.fail(fmt::format("macro '{}' has no parameter '{}'", name, keyword));
    scope_->names["caller"] = value;
  }
}

}  // namespace quadrille::tokenizer::jinja
