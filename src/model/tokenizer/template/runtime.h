// SPDX-License-Identifier: Apache-2.0
// What a rendering carries along: its limits, the place for errors, and the makers of values, which count their cost.
// Inside of this folder a failed template throws TemplateFailure; ChatTemplate turns it into an Error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/template/value.h"

namespace quadrille::tokenizer::jinja {

struct TemplateFailure {
  Error error;  // the message begins with "line N: "
};

[[noreturn]] void fail_at(int line, ErrorCode code, std::string_view text);

class Runtime {
 public:
  explicit Runtime(const TemplateLimits& limits) : limits_(limits) {}
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  void set_line(int line) { line_ = line; }
  int line() const { return line_; }
  const TemplateLimits& limits() const { return limits_; }

  // kInvalidArgument at the line that is being evaluated.
  [[noreturn]] void fail(std::string_view text) const;
  [[noreturn]] void unsupported(std::string_view text) const;
  // Using `value` where something is needed: fails if it is undefined.
  void require_defined(const Value& value) const;

  void charge(uint64_t steps);
  void charge_bytes(uint64_t bytes);  // text handled and kept

  Value text(std::string text);
  Value list(std::vector<Value> items, bool is_tuple = false);
  Value tuple(std::vector<Value> items) { return list(std::move(items), true); }
  // Later pairs win over earlier ones of the same key.
  Value dict(std::vector<std::pair<Value, Value>> items);
  Value make_namespace();
  Value callable(std::string name, std::function<Value(Runtime&, Arguments&)> call, int depth = 1) const;
  Value undefined(std::string reason) const;

 private:
  void check_depth(int depth) const;

  TemplateLimits limits_;
  uint64_t steps_ = 0;
  uint64_t bytes_ = 0;
  int line_ = 1;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
};

// Arguments of a call by position or name, in the order they are asked for.
class ArgumentReader {
 public:
  // `what` names the callee in errors ("filter 'join'").
  ArgumentReader(Runtime& runtime, Arguments& arguments, std::string what)
      : runtime_(runtime), arguments_(arguments), what_(std::move(what)), used_(arguments.keywords.size(), false) {}

  // The next argument, null when it is not given.
  const Value* next(std::string_view name);
  const Value& need(std::string_view name);
  int64_t integer(std::string_view name, int64_t otherwise);
  bool boolean(std::string_view name, bool otherwise);
  std::string string(std::string_view name, std::string_view otherwise);
  const std::string& need_string(std::string_view name);
  // Fails when an argument is left over.
  void finish();

 private:
  Runtime& runtime_;
  Arguments& arguments_;
  std::string what_;
  size_t position_ = 0;
  std::vector<bool> used_;
};

}  // namespace quadrille::tokenizer::jinja
