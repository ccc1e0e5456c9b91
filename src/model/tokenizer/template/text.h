// SPDX-License-Identifier: Apache-2.0
// Python's ideas of text: what is white space, escapes of literals, positions counted in characters.
// Used by lexer, methods and filters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quadrille::tokenizer::jinja {

// str.isspace(): White_Space and the four separators U+001C..U+001F.
bool is_python_space(char32_t c);
std::string_view strip_python_space(std::string_view text, bool left, bool right);
// strip() with the characters of `set`.
std::string_view strip_characters(std::string_view text, std::string_view set, bool left, bool right);

// The text of a string literal; nothing when an escape is malformed.
std::optional<std::string> unescape_python(std::string_view literal);
// The whole of `digits` as a number; false when it is none or too large for int64.
bool parse_integer(std::string_view digits, int base, int64_t& value);
bool parse_float(std::string_view text, double& value);

// The characters as separate strings.
std::vector<std::string_view> characters_of(std::string_view text);

std::string lower_text(std::string_view text);
std::string upper_text(std::string_view text);
// First character in title case, the others lower.
std::string capitalize_text(std::string_view text);

}  // namespace quadrille::tokenizer::jinja
