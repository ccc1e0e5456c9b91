// SPDX-License-Identifier: Apache-2.0
// Small text functions with Python's results.
#include "model/tokenizer/template/text.h"

#include <charconv>
#include <cmath>

#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

size_t last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
  return begin;
}

template <typename Drop>
std::string_view strip_if(std::string_view text, bool left, bool right, Drop&& drop) {
  while (left && !text.empty()) {
    const size_t length = character_length(text[0]);
    if (!drop(text.substr(0, length))) break;
    text.remove_prefix(length);
  }
  while (right && !text.empty()) {
    const size_t begin = last_character(text);
    if (!drop(text.substr(begin))) break;
    text = text.substr(0, begin);
  }
  return text;
}

// Reads up to `most` digits at `position`.
bool read_digits(std::string_view text, size_t& position, int base, size_t least, size_t most, uint32_t& value) {
  size_t count = 0;
  value = 0;
  for (; count < most && position < text.size(); ++count, ++position) {
    const char c = text[position];
    int digit = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : 99;
    if (digit >= base) break;
    value = value * static_cast<uint32_t>(base) + static_cast<uint32_t>(digit);
  }
  return count >= least;
}

// Behind the backslash at `i`; false when malformed.
bool unescape_one(std::string_view in, size_t& i, std::string& out) {
  const char c = in[i];
  constexpr std::string_view kFrom = "\\'\"abfnrtv";
  constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
  if (const size_t place = kFrom.find(c); place != std::string_view::npos) {
    out += kTo[place];
    ++i;
    return true;
  }
  if (c == '\n') {
    ++i;
    return true;
  }
  uint32_t value = 0;
  if (c >= '0' && c <= '7') {
    read_digits(in, i, 8, 1, 3, value);
  } else if (c == 'x' || c == 'u' || c == 'U') {
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
    ++i;
    if (!read_digits(in, i, 16, digits, digits, value)) return false;
  } else {
    out += '\\';  // unknown escapes stay as they are
    return true;
  }
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return false;
  append_utf8(out, static_cast<char32_t>(value));
  return true;
}

}  // namespace

bool is_python_space(char32_t c) {
  return is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

std::string_view strip_python_space(std::string_view text, bool left, bool right) {
  return strip_if(text, left, right, [](std::string_view character) {
    size_t position = 0;
    return is_python_space(next_character(character, position));
  });
}

std::string_view strip_characters(std::string_view text, std::string_view set, bool left, bool right) {
  return strip_if(text, left, right,
                  [&](std::string_view character) { return set.find(character) != std::string_view::npos; });
}

std::optional<std::string> unescape_python(std::string_view literal) {
  std::string out;
  for (size_t i = 0; i < literal.size();) {
    if (literal[i] != '\\' || i + 1 >= literal.size()) {
      out += literal[i++];
      continue;
    }
    ++i;
    if (!unescape_one(literal, i, out)) return std::nullopt;
  }
  return out;
}

bool parse_integer(std::string_view digits, int base, int64_t& value) {
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value, base);
  return error == std::errc() && stop == end && !digits.empty();
}

bool parse_float(std::string_view text, double& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return (error == std::errc() || error == std::errc::result_out_of_range) && stop == end && !text.empty();
}

std::vector<std::string_view> characters_of(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = character_length(text[i]);
    out.push_back(text.substr(i, length));
    i += length;
  }
  return out;
}

std::string lower_text(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) append_lower(out, next_character(text, i));
  return out;
}

std::string upper_text(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) append_upper(out, next_character(text, i));
  return out;
}

std::string capitalize_text(std::string_view text) {
  if (text.empty()) return "";
  std::string out;
  size_t i = 0;
  append_utf8(out, title_character(next_character(text, i)));
  return out + lower_text(text.substr(i));
}

}  // namespace quadrille::tokenizer::jinja
