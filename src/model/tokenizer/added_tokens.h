// SPDX-License-Identifier: Apache-2.0
// Tokens that stand beside the model's vocabulary: control tokens and whatever was added after training. They are cut
// out of the text before the model sees it. Called by tokenizer.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/result.h"
#include "formats/json.h"
#include "model/tokenizer/vocabulary.h"

namespace quadrille::tokenizer {

struct AddedToken {
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = false;
  int32_t id = -1;
};

// The list "added_tokens" in file order. The ids in it are taken as they stand; AddedTokens corrects them.
Result<std::vector<AddedToken>> read_added_tokens(const formats::JsonObject& file);

// Finds a set of strings in a text: at each place the longest, places from left to right, without overlap.
class StringFinder {
 public:
  // The first of equal strings wins. Empty strings are left out.
  void add(std::string_view text, int32_t value);
  bool empty() const { return nodes_.size() == 1; }

  struct Hit {
    size_t begin;
    size_t end;
    int32_t value;
  };
  // The first hit at or behind `from`; value -1 when there is none.
  Hit find(std::string_view text, size_t from) const;

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t value = -1;
    char byte = 0;
  };
  int32_t child(int32_t node, char byte) const;
  std::vector<Node> nodes_{1};
  bool starts_[256] = {};
};

// A span of text: of an added token (id >= 0), or between them (id -1).
struct Span {
  size_t begin;
  size_t end;
  int32_t id;
};

class AddedTokens {
 public:
  // The id of a token is that of the model's vocabulary, else the next free one behind it: what the ids of the file
  // say must agree (an error names the token otherwise).
  static Result<AddedTokens> create(std::vector<AddedToken> tokens, const Vocabulary& vocabulary,
                                    std::string_view where);

  // Cuts `text` at tokens that are not normalized / normalized. `parse_special` false leaves special tokens in the
  // text. Spans may overlap where one token strips spaces that another one holds.
  std::vector<Span> split_raw(std::string_view text, bool parse_special) const {
    return split(text, raw_, parse_special);
  }
  std::vector<Span> split_normalized(std::string_view text, bool parse_special) const {
    return split(text, normalized_, parse_special);
  }
  // To be called once for each token with `normalized`, in order: how it looks behind the normalizer.
  void set_normalized_form(const AddedToken& token, std::string_view form) { normalized_.add(form, token.id); }

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* by_id(int32_t id) const;
  bool is_special(std::string_view content) const { return special_.contains(std::string(content)); }

 private:
  std::vector<Span> split(std::string_view text, const StringFinder& finder, bool parse_special) const;

  std::vector<AddedToken> tokens_;  // special ones first, each kind in file order
  std::unordered_map<int32_t, AddedToken> by_id_;
  std::unordered_set<std::string> special_;
  StringFinder raw_;
  StringFinder normalized_;
};

}  // namespace quadrille::tokenizer
