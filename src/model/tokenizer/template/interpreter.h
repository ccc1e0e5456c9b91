// SPDX-License-Identifier: Apache-2.0
// Walks a program and writes its text. One object a rendering. Called by chat_template.cpp.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/tokenizer/template/ast.h"
#include "model/tokenizer/template/runtime.h"

namespace quadrille::tokenizer::jinja {

// Variables of one loop body, macro call or with block; names not found here are looked up in the parent.
struct Scope {
  Scope* parent = nullptr;
  std::unordered_map<std::string, Value> names;
  bool is_captured = false;  // a macro refers to it: it lives until the end
};

class Interpreter {
 public:
  Interpreter(const Program& program, const TemplateLimits& limits) : program_(program), runtime_(limits) {}

  Runtime& runtime() { return runtime_; }
  // Throws TemplateFailure.
  std::string run(std::vector<std::pair<std::string, Value>> variables);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class ScopeGuard;
  class DepthGuard;
  class Capture;
  class LoopGuard;

  Flow run_body(const Body& body);
  Flow run_statement(const Statement& statement);
  void run_output(const Statement& statement);
  Flow run_if(const Statement& statement);
  Flow run_for(const Statement& statement);
  void run_set(const Statement& statement);
  void run_call_block(const Statement& statement);
  Flow run_with(const Statement& statement);
  // The text of a body, through a filter when there is one.
  Value captured_body(const Body& body, const Expression* filter);
  void assign(const Target& target, const Value& value);
  void write(const Value& value);
  Value make_macro(const std::string& name, const std::vector<Parameter>& parameters, const Body& body);
  Value call_macro(const std::string& name, const std::vector<Parameter>& parameters, const Body& body, Scope* outer,
                   Arguments& arguments);
  void bind_parameters(const std::string& name, const std::vector<Parameter>& parameters, Arguments& arguments);

  Value evaluate(const Expression& expression);
  Value evaluate_compare(const Expression& expression);
  Value evaluate_slice(const Expression& expression);
  Value evaluate_call(const Expression& expression);
  Value evaluate_collection(const Expression& expression);
  Arguments evaluate_arguments(const Expression& expression);
  Value lookup(const std::string& name);
  Scope* new_scope(Scope* parent);
  void drop_scope(Scope* scope);

  const Program& program_;
  Runtime runtime_;
  std::vector<std::unique_ptr<Scope>> scopes_;
  Scope* scope_ = nullptr;
  std::string* out_ = nullptr;
  const Value* block_input_ = nullptr;  // what the first filter behind a block gets
  int depth_ = 0;
  int loop_depth_ = 0;
};

}  // namespace quadrille::tokenizer::jinja
