// SPDX-License-Identifier: Apache-2.0
// Counting, failing and making values.
#include "model/tokenizer/template/runtime.h"

#include <algorithm>

namespace quadrille::tokenizer::jinja {
namespace {

constexpr int kMaxValueDepth = 120;

}  // namespace

void fail_at(int line, ErrorCode code, std::string_view text) {
  throw TemplateFailure{make_error(code, "line {}: {}", line, text)};
}

Runtime::~Runtime() {
  for (const auto& ns : namespaces_) ns->attributes.clear();
}

void Runtime::fail(std::string_view text) const {
  fail_at(line_, ErrorCode::kInvalidArgument, text);
}
void Runtime::unsupported(std::string_view text) const {
  fail_at(line_, ErrorCode::kUnsupported, fmt::format("{} is not supported", text));
}

void Runtime::require_defined(const Value& value) const {
  if (!value.is_undefined()) return;
  fail(value.undefined().reason ? *value.undefined().reason : "an undefined value is used");
}

void Runtime::charge(uint64_t steps) {
  steps_ += steps;
  if (steps_ > limits_.steps)
    fail_at(line_, ErrorCode::kCapacity, fmt::format("the template takes more than {} steps", limits_.steps));
}

void Runtime::charge_bytes(uint64_t bytes) {
  bytes_ += bytes;
  charge(1 + bytes / 64);
  if (bytes_ > limits_.allocated_bytes)
    fail_at(line_, ErrorCode::kCapacity,
            fmt::format("the template makes more than {} bytes of values", limits_.allocated_bytes));
}

void Runtime::check_depth(int depth) const {
  if (depth > kMaxValueDepth)
    fail_at(line_, ErrorCode::kCapacity, fmt::format("values nested deeper than {}", kMaxValueDepth));
}

Value Runtime::text(std::string text) {
  charge_bytes(text.size() + sizeof(std::string));
  return Value(std::move(text));
}

Value Runtime::list(std::vector<Value> items, bool is_tuple) {
  charge(items.size());
  charge_bytes(sizeof(List) + items.size() * sizeof(Value));
  auto made = std::make_shared<List>();
  for (const Value& item : items) made->depth = std::max(made->depth, item.depth() + 1);
  check_depth(made->depth);
  made->items = std::move(items);
  made->is_tuple = is_tuple;
  return Value(std::shared_ptr<const List>(std::move(made)));
}

Value Runtime::dict(std::vector<std::pair<Value, Value>> items) {
  charge(items.size());
  charge_bytes(sizeof(Dict) + items.size() * (2 * sizeof(Value) + 64));
  auto made = std::make_shared<Dict>();
  for (auto& [key, value] : items) {
    if (!is_key(key)) fail(fmt::format("a {} cannot be a key of a dict here", key.type_name()));
    made->depth = std::max(made->depth, value.depth() + 1);
    const auto [place, is_new] = made->index.try_emplace(key_text(key), made->items.size());
    if (is_new) {
      made->items.emplace_back(std::move(key), std::move(value));
    } else {
      made->items[place->second].second = std::move(value);
    }
  }
  check_depth(made->depth);
  return Value(std::shared_ptr<const Dict>(std::move(made)));
}

Value Runtime::make_namespace() {
  charge_bytes(sizeof(Namespace));
  namespaces_.push_back(std::make_shared<Namespace>());
  return Value(namespaces_.back());
}

Value Runtime::callable(std::string name, std::function<Value(Runtime&, Arguments&)> call, int depth) const {
  check_depth(depth);
  return Value(std::make_shared<const Callable>(Callable{std::move(name), std::move(call), depth}));
}

Value Runtime::undefined(std::string reason) const {
  return Value(Undefined{std::make_shared<const std::string>(std::move(reason))});
}

const Value* ArgumentReader::next(std::string_view name) {
  if (position_ < arguments_.positional.size()) return &arguments_.positional[position_++];
  for (size_t i = 0; i < arguments_.keywords.size(); ++i) {
    if (arguments_.keywords[i].first != name) continue;
    used_[i] = true;
    return &arguments_.keywords[i].second;
  }
  return nullptr;
}

const Value& ArgumentReader::need(std::string_view name) {
  const Value* value = next(name);
  if (value == nullptr) runtime_.fail(fmt::format("{} needs the argument '{}'", what_, name));
  return *value;
}

int64_t ArgumentReader::integer(std::string_view name, int64_t otherwise) {
  const Value* value = next(name);
  if (value == nullptr || value->is_none()) return otherwise;
  if (!value->is_integral())
    runtime_.fail(fmt::format("{}: '{}' must be an integer, found {}", what_, name, value->type_name()));
  return value->integer();
}

bool ArgumentReader::boolean(std::string_view name, bool otherwise) {
  const Value* value = next(name);
  return value == nullptr ? otherwise : value->truth();
}

std::string ArgumentReader::string(std::string_view name, std::string_view otherwise) {
  const Value* value = next(name);
  if (value == nullptr || value->is_none()) return std::string(otherwise);
  if (!value->is_string())
    runtime_.fail(fmt::format("{}: '{}' must be a string, found {}", what_, name, value->type_name()));
  return value->string();
}

const std::string& ArgumentReader::need_string(std::string_view name) {
  const Value& value = need(name);
  if (!value.is_string())
    runtime_.fail(fmt::format("{}: '{}' must be a string, found {}", what_, name, value.type_name()));
  return value.string();
}

void ArgumentReader::finish() {
  if (position_ < arguments_.positional.size())
    runtime_.fail(fmt::format("{} takes at most {} arguments", what_, position_));
  for (size_t i = 0; i < used_.size(); ++i)
    if (!used_[i]) runtime_.unsupported(fmt::format("{}: the argument '{}'", what_, arguments_.keywords[i].first));
}

}  // namespace quadrille::tokenizer::jinja
