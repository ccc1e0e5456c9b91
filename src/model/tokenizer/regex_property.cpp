// SPDX-License-Identifier: Apache-2.0
// Names are compared without case, spaces, '_' and '-'. What the tables below lack is asked of PCRE2 itself, first as
// a script: a bare script name means "script extensions" to PCRE2 and "script" to Oniguruma.
#include "model/tokenizer/regex_property.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <utility>

namespace quadrille::tokenizer {
namespace {

using Row = std::pair<std::string_view, std::string_view>;

constexpr std::array<Row, 38> kCategories = {{
    {"other", "C"},
    {"control", "Cc"},
    {"format", "Cf"},
    {"unassigned", "Cn"},
    {"privateuse", "Co"},
    {"surrogate", "Cs"},
    {"letter", "L"},
    {"lowercaseletter", "Ll"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"titlecaseletter", "Lt"},
    {"uppercaseletter", "Lu"},
    {"casedletter", "L&"},
    {"lc", "L&"},
    {"mark", "M"},
    {"combiningmark", "M"},
    {"spacingmark", "Mc"},
    {"enclosingmark", "Me"},
    {"nonspacingmark", "Mn"},
    {"number", "N"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"punctuation", "P"},
    {"connectorpunctuation", "Pc"},
    {"dashpunctuation", "Pd"},
    {"closepunctuation", "Pe"},
    {"finalpunctuation", "Pf"},
    {"initialpunctuation", "Pi"},
    {"otherpunctuation", "Po"},
    {"openpunctuation", "Ps"},
    {"symbol", "S"},
    {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"},
    {"mathsymbol", "Sm"},
    {"othersymbol", "So"},
    {"separator", "Z"},
    {"spaceseparator", "Zs"},
}};

constexpr std::array<Row, 13> kPosix = {{
    {"alnum", "\\p{Alphabetic}\\p{Nd}"},
    {"alpha", "\\p{Alphabetic}"},
    {"ascii", "\\x{0}-\\x{7f}"},
    {"blank", "\\p{Zs}\\x{9}"},
    {"cntrl", "\\p{Cc}"},
    {"digit", "\\p{Nd}"},
    {"lower", "\\p{Lowercase}"},
    {"print", "\\x{20}-\\x{7e}\\x{a0}-\\x{2027}\\x{202a}-\\x{10ffff}"},
    {"punct", "\\p{P}"},
    {"space", kSpaceItems},
    {"upper", "\\p{Uppercase}"},
    {"word", kWordItems},
    {"xdigit", "0-9A-Fa-f"},
}};

std::string_view find_row(const Row* rows, size_t count, std::string_view name) {
  const Row* end = rows + count;
  const Row* row = std::find_if(rows, end, [&](const Row& r) { return r.first == name; });
  return row == end ? std::string_view() : row->second;
}

bool pcre2_knows(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                   &error, &offset, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

}  // namespace

Property shorthand_property(char letter) {
  switch (letter) {
    case 'd':
    case 'D':
      return {"\\p{Nd}", letter == 'D'};
    case 's':
    case 'S':
      return {std::string(kSpaceItems), letter == 'S'};
    case 'w':
    case 'W':
      return {std::string(kWordItems), letter == 'W'};
    default:
      return {"0-9A-Fa-f", letter == 'H'};
  }
}

std::optional<Property> named_property(std::string_view name, bool is_class) {
  std::string key;
  for (const char c : name) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (is_letter) key += static_cast<char>(c | 0x20);
    if (c >= '0' && c <= '9') key += c;
    if (!is_letter && !(c >= '0' && c <= '9') && c != ' ' && c != '_' && c != '-') return std::nullopt;
  }
  if (key == "any") return Property{"\\x{0}-\\x{10ffff}", false};
  if (key == "punct" && is_class) return Property{"\\p{P}\\p{S}", false};
  if (key == "graph") return Property{"\\p{Cc}\\p{Cn}\\p{Cs}\\p{Z}", true};
  if (key == "assigned") return Property{"\\p{Cn}", true};
  if (const std::string_view items = find_row(kPosix.data(), kPosix.size(), key); !items.empty())
    return Property{std::string(items), false};
  if (const std::string_view category = find_row(kCategories.data(), kCategories.size(), key); !category.empty())
    return Property{fmt::format("\\p{{{}}}", category), false};
  if (!key.empty() && key.size() <= 2) {
    key[0] = static_cast<char>(key[0] & ~0x20);
    const std::string text = fmt::format("\\p{{{}}}", key);
    return pcre2_knows(text) ? std::optional(Property{text, false}) : std::nullopt;
  }
  for (const char* form : {"sc:", ""}) {
    const std::string text = fmt::format("\\p{{{}{}}}", form, key);
    if (pcre2_knows(text)) return Property{text, false};
  }
  return std::nullopt;
}

}  // namespace quadrille::tokenizer
