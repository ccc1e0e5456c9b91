// SPDX-License-Identifier: Apache-2.0
// Patterns of tokenizer.json are written for Oniguruma; PCRE2 runs them here. This unit says the same in PCRE2's
// words: where both spell a thing alike but mean something else, the pattern is rewritten. Called by regex.cpp.
#pragma once

#include <string>
#include <string_view>

#include "core/result.h"

namespace quadrille::tokenizer {

// What differs: \s (U+180E is no space), \w, \b, \h, \v, \p{Script}, {,n}, {n,m}+ (a repeated interval, not a
// possessive one), (?m) (dot matches newline), nested classes and && inside of them.
// Expects PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE. Errors: kUnsupported or kInvalidData with the place in the pattern.
Result<std::string> pcre2_from_oniguruma(std::string_view pattern);

}  // namespace quadrille::tokenizer
