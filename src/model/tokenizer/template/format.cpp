// SPDX-License-Identifier: Apache-2.0
// Texts of values: str(), repr() and the % operator.
#include <cmath>

#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

// Control characters and the like; utf8proc's categories stand for str.isprintable().
bool is_printable(char32_t c) {
  return c == ' ' || (c > 0x20 && c != 0x7F && !(c >= 0x80 && c < 0xA0) && c != 0xAD && !is_python_space(c) &&
                      c != 0x200B && c != 0xFEFF && !(c >= 0xE000 && c < 0xF900));
}

void append_quoted(const std::string& text, std::string& out) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  out += quote;
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_character(text, i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      append_utf8(out, c);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else {
      out += c < 0x10000 ? fmt::format("\\u{:04x}", static_cast<uint32_t>(c))
                         : fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  out += quote;
}

void append_list(Runtime& runtime, const List& list, std::string& out) {
  out += list.is_tuple ? '(' : '[';
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(runtime, list.items[i], out);
  }
  if (list.is_tuple && list.items.size() == 1) out += ',';
  out += list.is_tuple ? ')' : ']';
}

void append_dict(Runtime& runtime, const Dict& dict, std::string& out) {
  out += '{';
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out += ", ";
    append_repr(runtime, dict.items[i].first, out);
    out += ": ";
    append_repr(runtime, dict.items[i].second, out);
  }
  out += '}';
}

// One conversion of percent_format: flags, width and precision as in C.
struct Conversion {
  std::string flags;
  int width = 0;
  int precision = -1;
  char type = 0;
};

Conversion read_conversion(Runtime& runtime, std::string_view format, size_t& i) {
  Conversion conversion;
  const auto number = [&](int& value) {
    value = 0;
    for (; i < format.size() && format[i] >= '0' && format[i] <= '9'; ++i) {
      value = value * 10 + (format[i] - '0');
      if (value > 1000) runtime.unsupported("a % conversion wider than 1000");
    }
  };
  while (i < format.size() && std::string_view("-+ 0#").find(format[i]) != std::string_view::npos)
    conversion.flags += format[i++];
  number(conversion.width);
  if (i < format.size() && format[i] == '.') {
    ++i;
    number(conversion.precision);
  }
  if (i >= format.size()) runtime.fail("incomplete % conversion");
  conversion.type = format[i++];
  return conversion;
}

std::string pad(const Conversion& conversion, std::string body) {
  const size_t length = count_characters(body);
  const auto width = static_cast<size_t>(conversion.width);
  if (length >= width) return body;
  const bool left = conversion.flags.find('-') != std::string::npos;
  const bool zeros =
      conversion.flags.find('0') != std::string::npos && !left && conversion.type != 's' && conversion.type != 'r';
  if (left) return body + std::string(width - length, ' ');
  if (!zeros) return std::string(width - length, ' ') + body;
  const size_t sign = body.starts_with('-') || body.starts_with('+') ? 1 : 0;
  return body.substr(0, sign) + std::string(width - length, '0') + body.substr(sign);
}

std::string convert(Runtime& runtime, const Conversion& conversion, const Value& value) {
  std::string body;
  const char type = conversion.type;
  if (type == 's' || type == 'r') {
    if (type == 's') {
      append_text(runtime, value, body);
    } else {
      append_repr(runtime, value, body);
    }
    if (conversion.precision >= 0) {
      std::string cut;
      for (const std::string_view character : characters_of(body)) {
        if (count_characters(cut) >= static_cast<size_t>(conversion.precision)) break;
        cut += character;
      }
      body = cut;
    }
    return pad(conversion, body);
  }
  if (!value.is_number()) runtime.fail(fmt::format("%{} needs a number, found {}", type, value.type_name()));
  if (type == 'd' || type == 'i') {
    if (value.is_float() && !(std::fabs(value.number()) < 9e18)) runtime.unsupported("an integer of more than 64 bits");
    body = fmt::format("{}", value.is_float() ? static_cast<int64_t>(value.number()) : value.integer());
  } else if (type == 'x' || type == 'X' || type == 'o') {
    if (!value.is_integral()) runtime.fail(fmt::format("%{} needs an integer", type));
    body = type == 'x'   ? fmt::format("{:x}", value.integer())
           : type == 'X' ? fmt::format("{:X}", value.integer())
                         : fmt::format("{:o}", value.integer());
  } else if (type == 'f' || type == 'F' || type == 'e' || type == 'g') {
    const int precision = conversion.precision < 0 ? 6 : conversion.precision;
    body = type == 'e'   ? fmt::format("{:.{}e}", value.number(), precision)
           : type == 'g' ? fmt::format("{:.{}g}", value.number(), precision)
                         : fmt::format("{:.{}f}", value.number(), precision);
  } else {
    runtime.unsupported(fmt::format("the conversion %{}", type));
  }
  if (conversion.flags.find('+') != std::string::npos && !body.starts_with('-')) body.insert(0, "+");
  return pad(conversion, body);
}

}  // namespace

void append_text(Runtime& runtime, const Value& value, std::string& out) {
  if (value.is_undefined()) return;
  if (value.is_string()) {
    runtime.charge_bytes(value.string().size());
    out += value.string();
    return;
  }
  append_repr(runtime, value, out);
}

std::string text_of(Runtime& runtime, const Value& value) {
  std::string out;
  append_text(runtime, value, out);
  return out;
}

void append_repr(Runtime& runtime, const Value& value, std::string& out) {
  runtime.charge_bytes(value.is_string() ? 2 * value.string().size() : 16);
  if (value.is_undefined()) {
    out += "Undefined";
  } else if (value.is_none()) {
    out += "None";
  } else if (value.is_bool()) {
    out += value.boolean() ? "True" : "False";
  } else if (value.is_int()) {
    out += fmt::format("{}", value.integer());
  } else if (value.is_float()) {
    out += float_text(value.number());
  } else if (value.is_string()) {
    append_quoted(value.string(), out);
  } else if (value.is_list()) {
    append_list(runtime, value.list(), out);
  } else if (value.is_dict()) {
    append_dict(runtime, value.dict(), out);
  } else {
    runtime.unsupported(fmt::format("printing a {}", value.type_name()));
  }
}

std::string percent_format(Runtime& runtime, std::string_view format, const Value& values) {
  std::string out;
  size_t used = 0;
  const auto argument = [&]() -> const Value& {
    if (!values.is_tuple()) {
      if (used++ > 0) runtime.fail("not enough arguments for the % conversions");
      return values;
    }
    if (used >= values.list().items.size()) runtime.fail("not enough arguments for the % conversions");
    return values.list().items[used++];
  };
  for (size_t i = 0; i < format.size();) {
    if (format[i] != '%') {
      out += format[i++];
      continue;
    }
    ++i;
    if (i < format.size() && format[i] == '(') runtime.unsupported("a named % conversion");
    const Conversion conversion = read_conversion(runtime, format, i);
    if (conversion.type == '%') {
      out += '%';
    } else {
      out += convert(runtime, conversion, argument());
    }
    runtime.charge_bytes(16);
  }
  const size_t given = values.is_tuple() ? values.list().items.size() : 1;
  if (used < given && !values.is_dict() && (values.is_tuple() || !values.is_list()))
    runtime.fail("not all arguments are used by the % conversions");
  return out;
}

}  // namespace quadrille::tokenizer::jinja
