// SPDX-License-Identifier: Apache-2.0
// Values of a running template: those of Python that templates see. Lists and dicts never change once made, so copies
// share them. Used by every unit of this folder.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace quadrille::tokenizer::jinja {

class Value;
class Runtime;

// The absence of a value; the text says of which ("'x' is undefined").
struct Undefined {
  std::shared_ptr<const std::string> reason;
};
struct None {};

struct List {
  std::vector<Value> items;
  bool is_tuple = false;
  int depth = 1;  // nesting, bounded so that no walk over values runs out of stack
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  std::unordered_map<std::string, size_t> index;
  int depth = 1;
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
};

// namespace(...): the one thing that can change. The runtime owns all and empties them at the end (cycles).
struct Namespace {
  std::map<std::string, Value, std::less<>> attributes;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

struct Callable {
  std::string name;
  std::function<Value(Runtime&, Arguments&)> call;
  int depth = 1;
};

// `loop` inside of a for.
struct Loop {
  std::vector<Value> items;
  size_t index = 0;
  int depth0 = 0;
  std::vector<Value> last_changed;
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}               // NOLINT(google-explicit-constructor)
  Value(Undefined u) : data_(std::move(u)) {}  // NOLINT(google-explicit-constructor)
  Value(bool b) : data_(b) {}                  // NOLINT(google-explicit-constructor)
  Value(int64_t i) : data_(i) {}               // NOLINT(google-explicit-constructor)
  Value(double d) : data_(d) {}                // NOLINT(google-explicit-constructor)
  Value(std::string s) : data_(std::make_shared<const std::string>(std::move(s))) {}  // NOLINT
  Value(std::shared_ptr<const List> l) : data_(std::move(l)) {}      // NOLINT(google-explicit-constructor)
  Value(std::shared_ptr<const Dict> d) : data_(std::move(d)) {}      // NOLINT(google-explicit-constructor)
  Value(std::shared_ptr<Namespace> n) : data_(std::move(n)) {}       // NOLINT(google-explicit-constructor)
  Value(std::shared_ptr<const Callable> c) : data_(std::move(c)) {}  // NOLINT(google-explicit-constructor)
  Value(std::shared_ptr<Loop> l) : data_(std::move(l)) {}            // NOLINT(google-explicit-constructor)
  template <typename T>
  Value(T*) = delete;

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_bool() || is_int() || is_float(); }
  bool is_integral() const { return is_bool() || is_int(); }  // what may be an index
  bool is_string() const { return std::holds_alternative<std::shared_ptr<const std::string>>(data_); }
  bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(data_); }  // or a tuple
  bool is_tuple() const { return is_list() && list().is_tuple; }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }
  bool is_namespace() const { return std::holds_alternative<std::shared_ptr<Namespace>>(data_); }
  bool is_callable() const { return std::holds_alternative<std::shared_ptr<const Callable>>(data_); }
  bool is_loop() const { return std::holds_alternative<std::shared_ptr<Loop>>(data_); }

  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  bool boolean() const { return std::get<bool>(data_); }
  int64_t integer() const { return is_bool() ? static_cast<int64_t>(boolean()) : std::get<int64_t>(data_); }
  double number() const { return is_float() ? std::get<double>(data_) : static_cast<double>(integer()); }
  const std::string& string() const { return *std::get<std::shared_ptr<const std::string>>(data_); }
  const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  Namespace& ns() const { return *std::get<std::shared_ptr<Namespace>>(data_); }
  const Callable& callable() const { return *std::get<std::shared_ptr<const Callable>>(data_); }
  Loop& loop() const { return *std::get<std::shared_ptr<Loop>>(data_); }

  // Same object: what `is sameas` asks.
  bool is_same(const Value& other) const;
  int depth() const;
  // As Python names it: "str", "list", "NoneType" ...
  std::string_view type_name() const;
  bool truth() const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, std::shared_ptr<const Callable>,
               std::shared_ptr<Loop>>
      data_;
};

// Equal keys have equal texts (1, 1.0 and true are one key). Only for keys that is_key() accepts.
std::string key_text(const Value& key);
bool is_key(const Value& key);

// repr() of a Python float.
std::string float_text(double value);

}  // namespace quadrille::tokenizer::jinja
