// SPDX-License-Identifier: Apache-2.0
// Filters whose result is a text or a number.
#include <algorithm>
#include <array>
#include <cmath>

#include "model/tokenizer/template/builtins.h"
#include "model/tokenizer/template/methods.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

// The filter as the str method of that name, on the text of any value.
Value as_method(Runtime& runtime, const Value& value, Arguments& arguments, std::string_view method) {
  const Value text = value.is_string() ? value : runtime.text(text_of(runtime, value));
  return find_string_method(method)(runtime, text, arguments);
}

Value trim(Runtime& r, const Value& v, Arguments& a) {
  return as_method(r, v, a, "strip");
}
Value lower(Runtime& r, const Value& v, Arguments& a) {
  return as_method(r, v, a, "lower");
}
Value upper(Runtime& r, const Value& v, Arguments& a) {
  return as_method(r, v, a, "upper");
}
Value capitalize(Runtime& r, const Value& v, Arguments& a) {
  return as_method(r, v, a, "capitalize");
}
Value replace(Runtime& r, const Value& v, Arguments& a) {
  return as_method(r, v, a, "replace");
}

Value center(Runtime& runtime, const Value& value, Arguments& arguments) {
  if (arguments.positional.empty() && arguments.keywords.empty()) arguments.positional.emplace_back(int64_t{80});
  return as_method(runtime, value, arguments, "center");
}

// Words begin behind white space, '-' and opening brackets.
Value title(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader(runtime, arguments, "filter 'title'").finish();
  const std::string text = text_of(runtime, value);
  std::string out;
  bool starts = true;
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_character(text, i);
    if (starts) {
      append_upper(out, c);
    } else {
      append_lower(out, c);
    }
    starts = is_python_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  }
  return runtime.text(std::move(out));
}

Value string(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader(runtime, arguments, "filter 'string'").finish();
  return value.is_string() ? value : runtime.text(text_of(runtime, value));
}

Value safe(Runtime&, const Value& value, Arguments&) {
  return value;
}

Value escape(Runtime& runtime, const Value& value, Arguments&) {
  std::string out;
  for (const char c : text_of(runtime, value)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return runtime.text(std::move(out));
}

Value to_int(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'int'");
  const int64_t otherwise = reader.integer("default", 0);
  const int64_t base = reader.integer("base", 10);
  reader.finish();
  if (base < 2 || base > 36) runtime.fail("filter 'int': the base must be 2 to 36");
  if (value.is_integral()) return Value(value.integer());
  double number = 0;
  if (value.is_float()) {
    number = value.number();
  } else if (value.is_string()) {
    std::string_view text = strip_python_space(value.string(), true, true);
    int64_t integer = 0;
    if (parse_integer(text.starts_with('+') ? text.substr(1) : text, static_cast<int>(base), integer))
      return Value(integer);
    if (!parse_float(text, number)) return Value(otherwise);
  } else {
    return Value(otherwise);
  }
  if (!(std::fabs(number) < 9e18)) return Value(otherwise);
  return Value(static_cast<int64_t>(number));
}

Value to_float(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'float'");
  const Value* otherwise = reader.next("default");
  reader.finish();
  if (value.is_number()) return Value(value.number());
  double number = 0;
  if (value.is_string() && parse_float(strip_python_space(value.string(), true, true), number)) return Value(number);
  return otherwise == nullptr ? Value(0.0) : *otherwise;
}

Value absolute(Runtime& runtime, const Value& value, Arguments&) {
  if (!value.is_number()) runtime.fail(fmt::format("filter 'abs' needs a number, found {}", value.type_name()));
  if (value.is_float()) return Value(std::fabs(value.number()));
  return value.integer() < 0 ? negate(runtime, value) : Value(value.integer());
}

Value round(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'round'");
  const int64_t precision = reader.integer("precision", 0);
  const std::string method = reader.string("method", "common");
  reader.finish();
  if (!value.is_number()) runtime.fail(fmt::format("filter 'round' needs a number, found {}", value.type_name()));
  if (precision < 0 || precision > 15) runtime.unsupported("a precision outside of 0 to 15");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double number = value.number();
  if (method == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method == "floor") return Value(std::floor(number * scale) / scale);
  if (method != "common") runtime.fail("filter 'round': method must be 'common', 'ceil' or 'floor'");
  if (value.is_integral()) return Value(value.integer());
  double rounded = 0;
  return parse_float(fmt::format("{:.{}f}", number, static_cast<int>(precision)), rounded) ? Value(rounded) : value;
}

Value tojson(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'tojson'");
  JsonStyle style;
  style.ascii_only = reader.boolean("ensure_ascii", false);
  const Value* indent = reader.next("indent");
  const Value* separators = reader.next("separators");
  style.sort_keys = reader.boolean("sort_keys", false);
  reader.finish();
  if (indent != nullptr && !indent->is_none()) {
    if (!indent->is_string() && !indent->is_integral())
      runtime.fail("filter 'tojson': indent must be an integer or a string");
    const int64_t width = indent->is_string() ? 0 : indent->integer();
    if (width > 100) runtime.unsupported("an indent of more than 100");
    style.indent =
        indent->is_string() ? indent->string() : std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    style.item_separator = ",";
  }
  if (separators != nullptr && !separators->is_none()) {
    const bool good = separators->is_list() && separators->list().items.size() == 2 &&
                      separators->list().items[0].is_string() && separators->list().items[1].is_string();
    if (!good) runtime.fail("filter 'tojson': separators must be two strings");
    style.item_separator = separators->list().items[0].string();
    style.key_separator = separators->list().items[1].string();
  }
  return runtime.text(json_text(runtime, value, style));
}

Value indent(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'indent'");
  const Value* width = reader.next("width");
  const bool first = reader.boolean("first", false);
  const bool blank = reader.boolean("blank", false);
  reader.finish();
  if (width != nullptr && width->is_integral() && width->integer() > 1000)
    runtime.unsupported("an indent of more than 1000");
  const std::string spaces = width == nullptr     ? "    "
                             : width->is_string() ? width->string()
                             : width->is_integral()
                                 ? std::string(static_cast<size_t>(std::max<int64_t>(width->integer(), 0)), ' ')
                                 : "";
  const std::string text = text_of(runtime, value);
  std::string out = first ? spaces : "";
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const bool is_blank = strip_python_space(std::string_view(text).substr(begin, end - begin), true, true).empty();
    if (begin > 0 && (blank || !is_blank || false) && (blank || end > begin)) out += spaces;
    out.append(text, begin, end - begin);
    runtime.charge_bytes(spaces.size() + (end - begin));
    if (end == text.size()) break;
    out += '\n';
    begin = end + 1;
  }
  return runtime.text(std::move(out));
}

Value format(Runtime& runtime, const Value& value, Arguments& arguments) {
  if (!value.is_string()) runtime.fail("filter 'format' needs a string");
  if (!arguments.keywords.empty()) runtime.unsupported("filter 'format' with names");
  return runtime.text(percent_format(runtime, value.string(), runtime.tuple(arguments.positional)));
}

// Runs of letters, numbers and underscores.
Value wordcount(Runtime& runtime, const Value& value, Arguments&) {
  const std::string text = text_of(runtime, value);
  int64_t words = 0;
  bool in_word = false;
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_character(text, i);
    const bool is_part = is_alphabetic(c) || is_numeric(c) || c == '_';
    words += is_part && !in_word ? 1 : 0;
    in_word = is_part;
  }
  return Value(words);
}

struct Entry {
  std::string_view name;
  Filter filter;
};
constexpr std::array<Entry, 20> kFilters = {{
    {"trim", trim},
    {"lower", lower},
    {"upper", upper},
    {"capitalize", capitalize},
    {"replace", replace},
    {"center", center},
    {"title", title},
    {"string", string},
    {"safe", safe},
    {"escape", escape},
    {"e", escape},
    {"int", to_int},
    {"float", to_float},
    {"abs", absolute},
    {"round", round},
    {"tojson", tojson},
    {"indent", indent},
    {"format", format},
    {"wordcount", wordcount},
    {"forceescape", escape},
}};

}  // namespace

Filter find_text_filter(std::string_view name) {
  const auto place =
      std::find_if(kFilters.begin(), kFilters.end(), [&](const Entry& entry) { return entry.name == name; });
  return place == kFilters.end() ? nullptr : place->filter;
}

}  // namespace quadrille::tokenizer::jinja
