// SPDX-License-Identifier: Apache-2.0
// Matching and cutting, apart from what the pieces are used for.
#include "model/tokenizer/pattern.h"

namespace quadrille::tokenizer {
namespace {

struct Part {
  Match range;
  bool is_match;
};

// Matches and the gaps between them, in order; together they cover the text.
std::vector<Part> cover(const std::vector<Match>& matches, size_t text_bytes, bool invert) {
  std::vector<Part> parts;
  size_t end = 0;
  for (const Match& match : matches) {
    if (match.begin != end) parts.push_back({{end, match.begin}, invert});
    parts.push_back({match, !invert});
    end = match.end;
  }
  if (end != text_bytes) parts.push_back({{end, text_bytes}, invert});
  return parts;
}

std::vector<Match> merge_with_previous(const std::vector<Part>& parts) {
  std::vector<Match> out;
  bool previous_match = false;
  for (const Part& part : parts) {
    if (part.is_match && !previous_match && !out.empty()) {
      out.back().end = part.range.end;
    } else {
      out.push_back(part.range);
    }
    previous_match = part.is_match;
  }
  return out;
}

std::vector<Match> merge_with_next(const std::vector<Part>& parts) {
  std::vector<Match> reversed;
  bool previous_match = false;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (part->is_match && !previous_match && !reversed.empty()) {
      reversed.back().begin = part->range.begin;
    } else {
      reversed.push_back(part->range);
    }
    previous_match = part->is_match;
  }
  return {reversed.rbegin(), reversed.rend()};
}

std::vector<Match> merge_equal(const std::vector<Part>& parts) {
  std::vector<Match> out;
  bool previous_match = false;
  for (const Part& part : parts) {
    if (part.is_match == previous_match && !out.empty()) {
      out.back().end = part.range.end;
    } else {
      out.push_back(part.range);
    }
    previous_match = part.is_match;
  }
  return out;
}

}  // namespace

Pattern Pattern::literal(std::string text) {
  Pattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

Pattern Pattern::regex(Regex regex) {
  Pattern pattern;
  pattern.regex_ = std::move(regex);
  return pattern;
}

Result<Pattern> Pattern::read(const formats::JsonObject& object, std::string_view key) {
  QD_TRY(const std::optional<formats::JsonObject> spec, object.find_object(key));
  if (!spec || spec->has("String") == spec->has("Regex"))
    return object.error(key, R"({"String": text} or {"Regex": expression})");
  if (spec->has("String")) {
    QD_TRY(std::string text, spec->get_string("String"));
    return literal(std::move(text));
  }
  QD_TRY(const std::string expression, spec->get_string("Regex"));
  auto compiled = Regex::compile(expression);
  if (!compiled) return compiled.error().in(spec->where("Regex"));
  return regex(std::move(*compiled));
}

Status Pattern::find_all(std::string_view text, std::vector<Match>& matches) const {
  if (text.empty()) return {};
  if (regex_) return regex_->find_all(text, matches);
  if (literal_.empty()) return {};
  for (size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size()))
    matches.push_back({at, at + literal_.size()});
  return {};
}

Result<std::string> Pattern::replace_all(std::string_view text, std::string_view content) const {
  std::vector<Match> matches;
  QD_TRY_STATUS(find_all(text, matches));
  std::string out;
  size_t end = 0;
  for (const Match& match : matches) {
    out += text.substr(end, match.begin - end);
    out += content;
    end = match.end;
  }
  out += text.substr(end);
  return out;
}

Result<SplitBehavior> read_split_behavior(const formats::JsonObject& object, std::string_view key,
                                          std::optional<SplitBehavior> otherwise) {
  QD_TRY(const std::optional<std::string> name, object.find_string(key));
  if (!name && otherwise) return *otherwise;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return object.error(key, "'Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext' or 'Contiguous'");
}

std::vector<Match> split_at(const std::vector<Match>& matches, size_t text_bytes, SplitBehavior behavior, bool invert) {
  const std::vector<Part> parts = cover(matches, text_bytes, invert);
  switch (behavior) {
    case SplitBehavior::kMergedWithPrevious:
      return merge_with_previous(parts);
    case SplitBehavior::kMergedWithNext:
      return merge_with_next(parts);
    case SplitBehavior::kContiguous:
      return merge_equal(parts);
    case SplitBehavior::kRemoved:
    case SplitBehavior::kIsolated:
      break;
  }
  std::vector<Match> out;
  for (const Part& part : parts)
    if (behavior == SplitBehavior::kIsolated || !part.is_match) out.push_back(part.range);
  return out;
}

}  // namespace quadrille::tokenizer
