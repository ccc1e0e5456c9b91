// SPDX-License-Identifier: Apache-2.0
// The "normalizer" of tokenizer.json: rewrites a span of text before it is cut. Called by tokenizer.cpp for every span
// between added tokens, and once for each added token that asks for it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::tokenizer {

// Text, and how many of its first bytes stem from the very first character of the prompt. The second is all that is
// left of the alignment to the original: Metaspace's prepend_scheme "first" asks whether a piece starts the prompt.
struct AlignedText {
  std::string text;
  size_t start_bytes = 0;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual Status apply(AlignedText& text) const = 0;
};

// The value of "normalizer"; null gives an empty list. Sequences are flattened. Errors: kUnsupported names the type.
Result<std::vector<std::unique_ptr<Normalizer>>> read_normalizer(const formats::JsonObject& file);

}  // namespace quadrille::tokenizer
