// SPDX-License-Identifier: Apache-2.0
// Values from JSON, and JSON texts as Python's json.dumps writes them.
#include "model/tokenizer/template/json_text.h"

#include <algorithm>
#include <cmath>

#include "model/tokenizer/template/builtins.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

constexpr int kMaxJsonDepth = 100;

Value convert(Runtime& runtime, const nlohmann::ordered_json& json, int depth) {
  if (depth > kMaxJsonDepth) runtime.fail(fmt::format("JSON nested deeper than {}", kMaxJsonDepth));
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) return Value(json.get<double>());
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number_float()) return Value(json.get<double>());
  if (json.is_string()) {
    if (first_invalid_utf8(json.get_ref<const std::string&>())) runtime.fail("a text that is no UTF-8");
    return runtime.text(json.get<std::string>());
  }
  if (json.is_array()) {
    std::vector<Value> items;
    for (const auto& item : json) items.push_back(convert(runtime, item, depth + 1));
    return runtime.list(std::move(items));
  }
  if (json.is_object()) {
    std::vector<std::pair<Value, Value>> items;
    for (const auto& [key, value] : json.items())
      items.emplace_back(runtime.text(key), convert(runtime, value, depth + 1));
    return runtime.dict(std::move(items));
  }
  return Value(None{});
}

class Writer {
 public:
  Writer(Runtime& runtime, const JsonStyle& style) : runtime_(runtime), style_(style) {}

  void write(const Value& value) {
    runtime_.charge_bytes(8);
    if (value.is_none()) {
      out_ += "null";
    } else if (value.is_bool()) {
      out_ += value.boolean() ? "true" : "false";
    } else if (value.is_int()) {
      out_ += fmt::format("{}", value.integer());
    } else if (value.is_float()) {
      write_float(value.number());
    } else if (value.is_string()) {
      write_string(value.string());
    } else if (value.is_list()) {
      write_list(value.list());
    } else if (value.is_dict()) {
      write_dict(value.dict());
    } else {
      runtime_.require_defined(value);
      runtime_.fail(fmt::format("a {} cannot be written as JSON", value.type_name()));
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void write_float(double value) {
    out_ += std::isnan(value) ? "NaN" : std::isinf(value) ? (value < 0 ? "-Infinity" : "Infinity") : float_text(value);
  }

  void write_unit(uint32_t unit) { out_ += fmt::format("\\u{:04x}", unit); }

  void write_string(const std::string& text) {
    static constexpr std::string_view kFrom = "\"\\\n\r\t\f\b";
    static constexpr std::string_view kTo = "\"\\nrtfb";
    runtime_.charge_bytes(text.size());
    out_ += '"';
    for (size_t i = 0; i < text.size();) {
      const char32_t c = next_character(text, i);
      const size_t place = c < 0x80 ? kFrom.find(static_cast<char>(c)) : std::string_view::npos;
      if (place != std::string_view::npos) {
        out_ += '\\';
        out_ += kTo[place];
      } else if (c < 0x20 || (style_.ascii_only && c >= 0x7F && c < 0x10000 && c != 0x7F)) {
        write_unit(static_cast<uint32_t>(c));
      } else if (style_.ascii_only && c >= 0x10000) {
        write_unit(0xD800 + ((static_cast<uint32_t>(c) - 0x10000) >> 10));
        write_unit(0xDC00 + ((static_cast<uint32_t>(c) - 0x10000) & 0x3FF));
      } else {
        append_utf8(out_, c);
      }
    }
    out_ += '"';
  }

  void break_line() {
    if (!style_.indent) return;
    runtime_.charge_bytes(static_cast<size_t>(level_) * style_.indent->size());
    out_ += '\n';
    for (int i = 0; i < level_; ++i) out_ += *style_.indent;
  }

  void write_list(const List& list) {
    if (list.items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    ++level_;
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      break_line();
      write(list.items[i]);
    }
    --level_;
    break_line();
    out_ += ']';
  }

  void write_key(const Value& key) {
    if (key.is_string()) {
      write_string(key.string());
      return;
    }
    out_ += '"';
    write(key);
    out_ += '"';
  }

  void write_dict(const Dict& dict) {
    if (dict.items.empty()) {
      out_ += "{}";
      return;
    }
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys)
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto* a, const auto* b) { return compare(runtime_, a->first, b->first, "<") < 0; });
    out_ += '{';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_ += style_.item_separator;
      break_line();
      write_key(items[i]->first);
      out_ += style_.key_separator;
      write(items[i]->second);
    }
    --level_;
    break_line();
    out_ += '}';
  }

  Runtime& runtime_;
  const JsonStyle& style_;
  std::string out_;
  int level_ = 0;
};

}  // namespace

Value value_of(Runtime& runtime, const nlohmann::ordered_json& json) {
  return convert(runtime, json, 0);
}

std::string json_text(Runtime& runtime, const Value& value, const JsonStyle& style) {
  Writer writer(runtime, style);
  writer.write(value);
  return writer.take();
}

}  // namespace quadrille::tokenizer::jinja
