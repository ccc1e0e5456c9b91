// SPDX-License-Identifier: Apache-2.0
// What must be undone however a step of the interpreter ends. For its two units.
#pragma once

#include <utility>

#include "model/tokenizer/template/interpreter.h"

namespace quadrille::tokenizer::jinja {

class Interpreter::ScopeGuard {
 public:
  ScopeGuard(Interpreter& interpreter, Scope* parent)
      : interpreter_(interpreter), saved_(interpreter.scope_), scope_(interpreter.new_scope(parent)) {
    interpreter_.scope_ = scope_;
  }
  ~ScopeGuard() {
    interpreter_.scope_ = saved_;
    interpreter_.drop_scope(scope_);
  }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

 private:
  Interpreter& interpreter_;
  Scope* saved_;
  Scope* scope_;
};

class Interpreter::DepthGuard {
 public:
  explicit DepthGuard(Interpreter& interpreter) : interpreter_(interpreter) {
    if (++interpreter_.depth_ > interpreter_.runtime_.limits().depth) {
      --interpreter_.depth_;
      fail_at(interpreter_.runtime_.line(), ErrorCode::kCapacity, "macros or expressions nested too deep");
    }
  }
  ~DepthGuard() { --interpreter_.depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Interpreter& interpreter_;
};

// A loop object that is over holds nothing: loops in lists in loops ... would make a chain of any length.
class Interpreter::LoopGuard {
 public:
  LoopGuard(Interpreter& interpreter, Loop& loop) : interpreter_(interpreter), loop_(loop) {
    ++interpreter_.loop_depth_;
  }
  ~LoopGuard() {
    --interpreter_.loop_depth_;
    loop_.items.clear();
    loop_.last_changed.clear();
  }
  LoopGuard(const LoopGuard&) = delete;
  LoopGuard& operator=(const LoopGuard&) = delete;

 private:
  Interpreter& interpreter_;
  Loop& loop_;
};

// Output goes into a text of its own.
class Interpreter::Capture {
 public:
  explicit Capture(Interpreter& interpreter)
      : interpreter_(interpreter), saved_(std::exchange(interpreter.out_, &text_)) {}
  ~Capture() { interpreter_.out_ = saved_; }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  std::string take() { return std::move(text_); }

 private:
  Interpreter& interpreter_;
  std::string text_;
  std::string* saved_;
};

}  // namespace quadrille::tokenizer::jinja
