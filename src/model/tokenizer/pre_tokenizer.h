// SPDX-License-Identifier: Apache-2.0
// The "pre_tokenizer" of tokenizer.json: cuts a normalized span into the pieces that BPE sees, and may rewrite them.
// Called by tokenizer.cpp for every span between added tokens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::tokenizer {

// One buffer and the pieces of it, in order, none empty. `start_bytes` of a piece as in AlignedText.
struct Pieces {
  struct Piece {
    size_t begin;
    size_t end;
    size_t start_bytes;
  };
  std::string text;
  std::vector<Piece> pieces;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual Status apply(Pieces& pieces) const = 0;
};

// The value of "pre_tokenizer"; null gives an empty list. Sequences are flattened. Errors: kUnsupported names the type.
Result<std::vector<std::unique_ptr<PreTokenizer>>> read_pre_tokenizer(const formats::JsonObject& file);

// Metaspace's "prepend_scheme", which older files spell as "add_prefix_space". Also used by the decoder.
enum class PrependScheme { kFirst, kAlways, kNever };
Result<PrependScheme> read_prepend_scheme(const formats::JsonObject& object);
// Metaspace's "replacement": one character.
Result<std::string> read_replacement(const formats::JsonObject& object);

}  // namespace quadrille::tokenizer
