// SPDX-License-Identifier: Apache-2.0
// Compiled patterns of tokenizer.json, and all their matches in a text. PCRE2 stays behind this header.
// Used by normalizers, pre-tokenizers and decoders.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace quadrille::tokenizer {

// Half-open range of bytes.
struct Match {
  size_t begin;
  size_t end;
};

// Immutable; several threads may search with one object.
class Regex {
 public:
  // `pattern` in Oniguruma's syntax (what the field's tokenizer.json files hold). Errors: kUnsupported, kInvalidData.
  static Result<Regex> compile(std::string_view pattern);

  // Appends all matches in well-formed UTF-8 `text`, left to right, without overlap; an empty match directly behind
  // another match is dropped. Errors: kCapacity when a pattern needs more steps than its text can justify.
  Status find_all(std::string_view text, std::vector<Match>& matches) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace quadrille::tokenizer
