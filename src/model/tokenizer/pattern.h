// SPDX-License-Identifier: Apache-2.0
// What a tokenizer.json calls a "pattern": a literal string or a regular expression, and the cuts it makes in a text.
// Used by the Replace and Split parts.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "formats/json.h"
#include "model/tokenizer/regex.h"

namespace quadrille::tokenizer {

class Pattern {
 public:
  // Reads {"String": s} or {"Regex": r} under `key` of `object`.
  static Result<Pattern> read(const formats::JsonObject& object, std::string_view key);
  static Pattern literal(std::string text);
  static Pattern regex(Regex regex);

  // All matches, left to right, without overlap. An empty literal and an empty text match nothing.
  Status find_all(std::string_view text, std::vector<Match>& matches) const;
  // The text with every match replaced.
  Result<std::string> replace_all(std::string_view text, std::string_view content) const;
  // The literal, unless this is a regular expression.
  const std::string* literal_text() const { return regex_ ? nullptr : &literal_; }

 private:
  std::string literal_;
  std::optional<Regex> regex_;
};

enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
Result<SplitBehavior> read_split_behavior(const formats::JsonObject& object, std::string_view key,
                                          std::optional<SplitBehavior> otherwise);

// The pieces of a text of `text_bytes` that is cut at `matches`; `invert` exchanges matches and gaps. Pieces may be
// empty where matches are.
std::vector<Match> split_at(const std::vector<Match>& matches, size_t text_bytes, SplitBehavior behavior, bool invert);

}  // namespace quadrille::tokenizer
