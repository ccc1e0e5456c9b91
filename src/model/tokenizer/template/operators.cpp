// SPDX-License-Identifier: Apache-2.0
// Comparison and arithmetic.
#include "model/tokenizer/template/operators.h"

#include <algorithm>
#include <cmath>

#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

constexpr int64_t kMaxRepeatBytes = 1 << 24;

[[noreturn]] void bad_operands(Runtime& runtime, std::string_view op, const Value& a, const Value& b) {
  runtime.require_defined(a);
  runtime.require_defined(b);
  runtime.fail(fmt::format("operator {} does not work for {} and {}", op, a.type_name(), b.type_name()));
}

int sign_of(int64_t a, int64_t b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

bool equal_lists(Runtime& runtime, const List& a, const List& b) {
  if (a.is_tuple != b.is_tuple || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i)
    if (!equal(runtime, a.items[i], b.items[i])) return false;
  return true;
}

bool equal_dicts(Runtime& runtime, const Dict& a, const Dict& b) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = b.find(key);
    if (other == nullptr || !equal(runtime, value, *other)) return false;
  }
  return true;
}

Value repeat(Runtime& runtime, const Value& what, int64_t times) {
  times = std::max<int64_t>(times, 0);
  const auto size = static_cast<int64_t>(what.is_string() ? what.string().size() : what.list().items.size());
  if (size > 0 && times > kMaxRepeatBytes / size) fail_at(runtime.line(), ErrorCode::kCapacity, "repeated too often");
  if (what.is_string()) {
    runtime.charge(static_cast<uint64_t>(times));
    std::string text;
    for (int64_t i = 0; i < times && size > 0; ++i) text += what.string();
    return runtime.text(std::move(text));
  }
  std::vector<Value> items;
  runtime.charge(static_cast<uint64_t>(times * size));
  for (int64_t i = 0; i < times && size > 0; ++i)
    items.insert(items.end(), what.list().items.begin(), what.list().items.end());
  return runtime.list(std::move(items), what.is_tuple());
}

int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

double float_modulo(double a, double b) {
  const double rest = std::fmod(a, b);
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

Value integer_operation(Runtime& runtime, std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else {  // // and %
    if (b == 0) runtime.fail("division by zero");
    overflow = b == -1 && a == INT64_MIN;
    if (!overflow) result = op == "//" ? floor_divide(a, b) : b == -1 ? 0 : a - b * floor_divide(a, b);
  }
  if (overflow) runtime.unsupported("an integer of more than 64 bits");
  return Value(result);
}

Value power(Runtime& runtime, const Value& a, const Value& b) {
  if (!a.is_integral() || !b.is_integral() || b.integer() < 0) return Value(std::pow(a.number(), b.number()));
  int64_t result = 1;
  const int64_t base = a.integer();
  for (int64_t i = 0; i < b.integer() && (base < -1 || base > 1); ++i)
    if (__builtin_mul_overflow(result, base, &result)) runtime.unsupported("an integer of more than 64 bits");
  if (base == 0 && b.integer() > 0) result = 0;
  if (base == -1 && b.integer() % 2 != 0) result = -1;
  return Value(result);
}

Value number_operation(Runtime& runtime, std::string_view op, const Value& a, const Value& b) {
  if (op == "**") return power(runtime, a, b);
  if (op == "/") {
    if (b.number() == 0) runtime.fail("division by zero");
    return Value(a.number() / b.number());
  }
  if (a.is_integral() && b.is_integral()) return integer_operation(runtime, op, a.integer(), b.integer());
  const double x = a.number();
  const double y = b.number();
  if (op == "+") return Value(x + y);
  if (op == "-") return Value(x - y);
  if (op == "*") return Value(x * y);
  if (y == 0) runtime.fail("division by zero");
  return op == "//" ? Value(std::floor(x / y)) : Value(float_modulo(x, y));
}

}  // namespace

bool equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.is_string() && b.is_string()) {
    runtime.charge(a.string().size() / 64);
    return a.string() == b.string();
  }
  if (a.is_list() && b.is_list()) return equal_lists(runtime, a.list(), b.list());
  if (a.is_dict() && b.is_dict()) return equal_dicts(runtime, a.dict(), b.dict());
  return a.is_same(b);
}

int compare(Runtime& runtime, const Value& a, const Value& b, std::string_view op) {
  runtime.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return sign_of(a.integer(), b.integer());
    if (std::isnan(a.number()) || std::isnan(b.number())) runtime.unsupported("the order of nan");
    return a.number() < b.number() ? -1 : a.number() > b.number() ? 1 : 0;
  }
  if (a.is_string() && b.is_string()) {
    runtime.charge(a.string().size() / 64);
    return sign_of(a.string().compare(b.string()), 0);  // UTF-8 bytes order like characters
  }
  if (a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    const auto& x = a.list().items;
    const auto& y = b.list().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(runtime, x[i], y[i])) return compare(runtime, x[i], y[i], op);
    return sign_of(static_cast<int64_t>(x.size()), static_cast<int64_t>(y.size()));
  }
  bad_operands(runtime, op, a, b);
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  runtime.charge(1);
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    if (!item.is_string()) bad_operands(runtime, "in", item, container);
    runtime.charge(container.string().size() / 64);
    return container.string().find(item.string()) != std::string::npos;
  }
  if (container.is_dict()) {
    if (item.is_list() || item.is_dict()) runtime.fail(fmt::format("a {} cannot be a key of a dict", item.type_name()));
    return container.dict().find(item) != nullptr;
  }
  if (container.is_list()) {
    const auto& items = container.list().items;
    return std::any_of(items.begin(), items.end(), [&](const Value& other) { return equal(runtime, item, other); });
  }
  bad_operands(runtime, "in", item, container);
}

Value binary_operation(Runtime& runtime, std::string_view op, const Value& a, const Value& b) {
  if (op == "~") {
    std::string text = text_of(runtime, a);
    append_text(runtime, b, text);
    return runtime.text(std::move(text));
  }
  if (a.is_number() && b.is_number()) return number_operation(runtime, op, a, b);
  if (op == "+" && a.is_string() && b.is_string()) return runtime.text(a.string() + b.string());
  if (op == "+" && a.is_list() && b.is_list() && a.is_tuple() == b.is_tuple()) {
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return runtime.list(std::move(items), a.is_tuple());
  }
  if (op == "*" && (a.is_string() || a.is_list()) && b.is_integral()) return repeat(runtime, a, b.integer());
  if (op == "*" && (b.is_string() || b.is_list()) && a.is_integral()) return repeat(runtime, b, a.integer());
  if (op == "%" && a.is_string()) return runtime.text(percent_format(runtime, a.string(), b));
  bad_operands(runtime, op, a, b);
}

Value negate(Runtime& runtime, const Value& value) {
  if (value.is_float()) return Value(-value.number());
  if (value.is_integral()) return integer_operation(runtime, "-", 0, value.integer());
  runtime.require_defined(value);
  runtime.fail(fmt::format("operator - does not work for {}", value.type_name()));
}

std::vector<Value> elements_of(Runtime& runtime, const Value& value) {
  std::vector<Value> out;
  if (value.is_undefined()) return out;
  if (value.is_list()) {
    runtime.charge(value.list().items.size());
    return value.list().items;
  }
  if (value.is_dict()) {
    runtime.charge(value.dict().items.size());
    for (const auto& item : value.dict().items) out.push_back(item.first);
    return out;
  }
  if (value.is_string()) {
    const std::string& text = value.string();
    for (size_t i = 0; i < text.size();) {
      const size_t length = character_length(text[i]);
      out.push_back(runtime.text(text.substr(i, length)));
      i += length;
    }
    return out;
  }
  runtime.fail(fmt::format("{} cannot be iterated", value.type_name()));
}

size_t length_of(Runtime& runtime, const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) {
    runtime.charge(value.string().size() / 64);
    return count_characters(value.string());
  }
  if (value.is_list()) return value.list().items.size();
  if (value.is_dict()) return value.dict().items.size();
  if (value.is_loop()) return value.loop().items.size();
  runtime.fail(fmt::format("{} has no length", value.type_name()));
}

Value call_value(Runtime& runtime, const Value& callee, Arguments& arguments) {
  runtime.require_defined(callee);
  if (!callee.is_callable()) runtime.fail(fmt::format("{} cannot be called", callee.type_name()));
  const int line = runtime.line();
  runtime.charge(1);
  Value result = callee.callable().call(runtime, arguments);
  runtime.set_line(line);
  return result;
}

}  // namespace quadrille::tokenizer::jinja
