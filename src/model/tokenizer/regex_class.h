// SPDX-License-Identifier: Apache-2.0
// One character class of a pattern: brackets where PCRE2 has them, otherwise alternatives and lookaheads that match one
// character. Filled by regex_syntax.cpp.
#pragma once

#include <string>
#include <vector>

#include "model/tokenizer/regex_property.h"

namespace quadrille::tokenizer {

struct ClassSet {
  std::string items;                      // what may stand between brackets
  std::vector<std::string> alternatives;  // sub-patterns of one character each that brackets cannot hold
  std::vector<std::string> conditions;    // && : sub-patterns that must match the same character
  bool negated = false;

  bool is_plain() const { return alternatives.empty() && conditions.empty(); }
  void add(const Property& property) {
    if (property.negated) {
      alternatives.push_back("[^" + property.items + "]");
    } else {
      items += property.items;
    }
  }
  std::string positive() const {
    std::string any = items.empty() ? "" : "[" + items + "]";
    for (const std::string& alternative : alternatives) any += (any.empty() ? "" : "|") + alternative;
    if (any.empty()) any = "(?!)";
    if (!alternatives.empty()) any = "(?:" + any + ")";
    if (conditions.empty()) return any;
    std::string all = "(?:";
    for (const std::string& condition : conditions) all += "(?=" + condition + ")";
    return all + any + ")";
  }
  std::string text() const {
    if (!negated) return positive();
    if (is_plain() && !items.empty()) return "[^" + items + "]";
    return "(?:(?!" + positive() + ")(?s:.))";
  }
};

}  // namespace quadrille::tokenizer
