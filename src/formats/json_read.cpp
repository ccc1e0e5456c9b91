// SPDX-License-Identifier: Apache-2.0
// Typed reads of JSON objects: one place that words the errors about a key.
#include <cmath>

#include "core/check.h"
#include "formats/json.h"

namespace quadrille::formats {
namespace {

std::string int_range_text(int64_t minimum, int64_t maximum) {
  if (maximum == std::numeric_limits<int64_t>::max()) return fmt::format("an integer of at least {}", minimum);
  return fmt::format("an integer from {} to {}", minimum, maximum);
}

std::string number_range_text(double minimum, double maximum) {
  if (std::isinf(minimum) && std::isinf(maximum)) return "a number";
  if (std::isinf(maximum)) return fmt::format("a number of at least {}", minimum);
  return fmt::format("a number from {} to {}", minimum, maximum);
}

// The exact integer, or nothing for any other kind of value and for one above int64.
std::optional<int64_t> exact_int(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  return std::nullopt;
}

std::optional<int64_t> int_in_range(const Json& value, int64_t minimum, int64_t maximum) {
  const std::optional<int64_t> number = exact_int(value);
  if (!number || *number < minimum || *number > maximum) return std::nullopt;
  return number;
}

}  // namespace

std::string json_excerpt(const Json& value) {
  // A large tree is not dumped whole for a message.
  if (value.is_structured() && value.size() > 16)
    return fmt::format("{} of {} elements", value.is_array() ? "an array" : "an object", value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

JsonObject::JsonObject(const Json& object, std::string where, std::string path)
    : object_(&object), where_(std::move(where)), path_(std::move(path)) {
  QD_CHECK(object.is_object(), "JsonObject of something that is no object");
}

const Json* JsonObject::find(std::string_view key) const {
  const auto place = object_->find(std::string(key));
  return place == object_->end() || place->is_null() ? nullptr : &*place;
}

std::string JsonObject::where(std::string_view key) const {
  return path_.empty() ? fmt::format("{}: '{}'", where_, key) : fmt::format("{}: '{}.{}'", where_, path_, key);
}

Error JsonObject::error(std::string_view key, std::string_view expected) const {
  const Json* value = find(key);
  if (value == nullptr) return make_error(ErrorCode::kInvalidData, "{} is missing: expected {}", where(key), expected);
  return make_error(ErrorCode::kInvalidData, "{}: expected {}, found {}", where(key), expected, json_excerpt(*value));
}

Result<std::optional<int64_t>> JsonObject::find_int(std::string_view key, int64_t minimum, int64_t maximum) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<int64_t>();
  const std::optional<int64_t> number = int_in_range(*value, minimum, maximum);
  if (!number) return error(key, int_range_text(minimum, maximum));
  return number;
}

Result<int64_t> JsonObject::get_int(std::string_view key, int64_t minimum, int64_t maximum) const {
  QD_TRY(const std::optional<int64_t> number, find_int(key, minimum, maximum));
  if (!number) return error(key, int_range_text(minimum, maximum));
  return *number;
}

Result<std::optional<double>> JsonObject::find_double(std::string_view key, double minimum, double maximum) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<double>();
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!std::isfinite(number) || number < minimum || number > maximum)
    return error(key, number_range_text(minimum, maximum));
  return std::optional<double>(number);
}

Result<double> JsonObject::get_double(std::string_view key, double minimum, double maximum) const {
  QD_TRY(const std::optional<double> number, find_double(key, minimum, maximum));
  if (!number) return error(key, number_range_text(minimum, maximum));
  return *number;
}

Result<std::optional<bool>> JsonObject::find_bool(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_boolean()) return error(key, "true or false");
  return std::optional<bool>(value->get<bool>());
}

Result<bool> JsonObject::get_bool(std::string_view key) const {
  QD_TRY(const std::optional<bool> value, find_bool(key));
  if (!value) return error(key, "true or false");
  return *value;
}

Result<std::optional<std::string>> JsonObject::find_string(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<std::string>();
  if (!value->is_string()) return error(key, "a string");
  return std::optional<std::string>(value->get<std::string>());
}

Result<std::string> JsonObject::get_string(std::string_view key) const {
  QD_TRY(std::optional<std::string> value, find_string(key));
  if (!value) return error(key, "a string");
  return std::move(*value);
}

Result<std::optional<std::vector<int64_t>>> JsonObject::find_int_list(std::string_view key, int64_t minimum,
                                                                      int64_t maximum) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<std::vector<int64_t>>();
  const std::string expected = fmt::format("a list, each {}", int_range_text(minimum, maximum));
  if (!value->is_array()) return error(key, expected);
  std::vector<int64_t> numbers;
  for (const Json& element : *value) {
    const std::optional<int64_t> number = int_in_range(element, minimum, maximum);
    if (!number) return error(key, expected);
    numbers.push_back(*number);
  }
  return std::optional<std::vector<int64_t>>(std::move(numbers));
}

Result<std::optional<std::vector<std::string>>> JsonObject::find_string_list(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<std::vector<std::string>>();
  if (!value->is_array()) return error(key, "a list of strings");
  std::vector<std::string> strings;
  for (const Json& element : *value) {
    if (!element.is_string()) return error(key, "a list of strings");
    strings.push_back(element.get<std::string>());
  }
  return std::optional<std::vector<std::string>>(std::move(strings));
}

Result<std::vector<int64_t>> JsonObject::find_int_or_list(std::string_view key, int64_t minimum,
                                                          int64_t maximum) const {
  const Json* value = find(key);
  std::vector<int64_t> numbers;
  if (value == nullptr) return numbers;
  const std::string expected = int_range_text(minimum, maximum) + ", or a list of them";
  const auto take = [&](const Json& element) {
    const std::optional<int64_t> number = int_in_range(element, minimum, maximum);
    if (number) numbers.push_back(*number);
    return number.has_value();
  };
  if (!value->is_array()) {
    if (!take(*value)) return error(key, expected);
    return numbers;
  }
  for (const Json& element : *value)
    if (!take(element)) return error(key, expected);
  return numbers;
}

Result<std::optional<JsonObject>> JsonObject::find_object(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<JsonObject>();
  if (!value->is_object()) return error(key, "an object");
  const std::string path = path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  return std::optional<JsonObject>(JsonObject(*value, where_, path));
}

}  // namespace quadrille::formats
