// SPDX-License-Identifier: Apache-2.0
// The named character sets of Oniguruma as items of a PCRE2 bracket expression. Called by regex_syntax.cpp.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quadrille::tokenizer {

// White_Space; Oniguruma's \s. PCRE2's own \s holds U+180E as well.
inline constexpr std::string_view kSpaceItems =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
// Alphabetic, marks, decimal digits and connectors; PCRE2's own \w lacks the marks.
inline constexpr std::string_view kWordItems =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{"
    "1f189}";

// Outside of brackets \w, \b and \p{Word} take Oniguruma's Latin-1 table, which holds these numbers too.
inline constexpr std::string_view kLatinWordItems = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

struct Property {
  std::string items;
  bool negated = false;
};

// `letter`: one of d D s S w W h H.
Property shorthand_property(char letter);
// `is_class`: inside of [: :], where "punct" means more. General categories (short and long), POSIX names, scripts,
// binary properties; nothing when the name is unknown.
std::optional<Property> named_property(std::string_view name, bool is_class);

}  // namespace quadrille::tokenizer
