// SPDX-License-Identifier: Apache-2.0
// Properties of single values; whatever walks over nested values is in operators.cpp, which counts steps.
#include "model/tokenizer/template/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace quadrille::tokenizer::jinja {

const Value* Dict::find(const Value& key) const {
  if (!is_key(key)) return nullptr;
  const auto place = index.find(key_text(key));
  return place == index.end() ? nullptr : &items[place->second].second;
}

const Value* Dict::find(std::string_view key) const {
  const auto place = index.find("s" + std::string(key));
  return place == index.end() ? nullptr : &items[place->second].second;
}

bool Value::is_same(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_string()) return &string() == &other.string() || string() == other.string();
  if (is_list()) return &list() == &other.list();
  if (is_dict()) return &dict() == &other.dict();
  if (is_namespace()) return &ns() == &other.ns();
  if (is_callable()) return &callable() == &other.callable();
  if (is_loop()) return &loop() == &other.loop();
  if (is_float()) return number() == other.number();
  if (is_integral()) return integer() == other.integer();
  return true;
}

int Value::depth() const {
  if (is_list()) return list().depth;
  if (is_dict()) return dict().depth;
  if (is_callable()) return callable().depth;
  return 0;
}

std::string_view Value::type_name() const {
  static constexpr std::array<std::string_view, 11> kNames = {
      "Undefined", "NoneType", "bool", "int", "float", "str", "list", "dict", "Namespace", "function", "LoopContext"};
  return is_tuple() ? "tuple" : kNames[data_.index()];
}

bool Value::truth() const {
  if (is_undefined() || is_none()) return false;
  if (is_integral()) return integer() != 0;
  if (is_float()) return number() != 0;
  if (is_string()) return !string().empty();
  if (is_list()) return !list().items.empty();
  if (is_dict()) return !dict().items.empty();
  return true;
}

bool is_key(const Value& key) {
  return key.is_string() || key.is_number() || key.is_none();
}

std::string key_text(const Value& key) {
  if (key.is_string()) return fmt::format("s{}", key.string());
  if (key.is_none()) return "0";
  if (key.is_integral()) return fmt::format("n{}", key.integer());
  const double value = key.number();
  const bool is_whole = std::floor(value) == value && std::fabs(value) < 9e18;
  return is_whole ? fmt::format("n{}", static_cast<int64_t>(value)) : fmt::format("f{}", float_text(value));
}

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 64> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific);
  std::string text(buffer.data(), end.ptr);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));
  if (exponent < -4 || exponent >= 16) {  // Python's switch to scientific notation
    return fmt::format("{}e{}{:02d}", text.substr(0, e), exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  const auto fixed = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed);
  text.assign(buffer.data(), fixed.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

}  // namespace quadrille::tokenizer::jinja
