// SPDX-License-Identifier: Apache-2.0
// Reading added tokens and finding them in text.
#include "model/tokenizer/added_tokens.h"

#include <algorithm>

#include "model/tokenizer/component.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

size_t previous_character(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (text[begin] & 0xC0) == 0x80) --begin;
  return begin;
}

bool word_before(std::string_view text, size_t end) {
  if (end == 0) return false;
  size_t position = previous_character(text, end);
  return is_word(next_character(text, position));
}

bool word_at(std::string_view text, size_t begin) {
  return begin < text.size() && is_word(next_character(text, begin));
}

size_t skip_space_back(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t begin = previous_character(text, end);
    size_t position = begin;
    if (!is_white_space(next_character(text, position))) break;
    end = begin;
  }
  return end;
}

size_t skip_space(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t next = begin;
    if (!is_white_space(next_character(text, next))) break;
    begin = next;
  }
  return begin;
}

Result<AddedToken> read_token(const formats::JsonObject& object) {
  AddedToken token;
  QD_TRY(token.content, object.get_string("content"));
  QD_TRY(token.single_word, read_flag(object, "single_word", false));
  QD_TRY(token.lstrip, read_flag(object, "lstrip", false));
  QD_TRY(token.rstrip, read_flag(object, "rstrip", false));
  QD_TRY(token.special, read_flag(object, "special", false));
  QD_TRY(token.normalized, read_flag(object, "normalized", !token.special));
  QD_TRY(const int64_t id, object.get_int("id", 0, INT32_MAX - 1));
  token.id = static_cast<int32_t>(id);
  return token;
}

bool same(const AddedToken& a, const AddedToken& b) {
  return a.content == b.content && a.single_word == b.single_word && a.lstrip == b.lstrip && a.rstrip == b.rstrip &&
         a.normalized == b.normalized && a.special == b.special;
}

}  // namespace

Result<std::vector<AddedToken>> read_added_tokens(const formats::JsonObject& file) {
  std::vector<AddedToken> tokens;
  const formats::Json* list = file.find("added_tokens");
  if (list == nullptr) return tokens;
  if (!list->is_array()) return file.error("added_tokens", "a list");
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string place = file.where(fmt::format("added_tokens[{}]", i));
    if (!(*list)[i].is_object())
      return make_error(ErrorCode::kInvalidData, "{}: expected an object, found {}", place,
                        formats::json_excerpt((*list)[i]));
    QD_TRY(AddedToken token, read_token(formats::JsonObject((*list)[i], place)));
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

int32_t StringFinder::child(int32_t node, char byte) const {
  int32_t at = nodes_[static_cast<size_t>(node)].first_child;
  while (at >= 0 && nodes_[static_cast<size_t>(at)].byte != byte) at = nodes_[static_cast<size_t>(at)].next_sibling;
  return at;
}

void StringFinder::add(std::string_view text, int32_t value) {
  if (text.empty()) return;
  starts_[static_cast<uint8_t>(text[0])] = true;
  int32_t node = 0;
  for (const char byte : text) {
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({-1, nodes_[static_cast<size_t>(node)].first_child, -1, byte});
      nodes_[static_cast<size_t>(node)].first_child = next;
    }
    node = next;
  }
  if (nodes_[static_cast<size_t>(node)].value < 0) nodes_[static_cast<size_t>(node)].value = value;
}

StringFinder::Hit StringFinder::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size() && !empty(); ++begin) {
    if (!starts_[static_cast<uint8_t>(text[begin])]) continue;
    Hit hit{begin, begin, -1};
    int32_t node = 0;
    for (size_t i = begin; i < text.size(); ++i) {
      node = child(node, text[i]);
      if (node < 0) break;
      const int32_t value = nodes_[static_cast<size_t>(node)].value;
      if (value >= 0) hit = {begin, i + 1, value};
    }
    if (hit.value >= 0) return hit;
  }
  return {text.size(), text.size(), -1};
}

Result<AddedTokens> AddedTokens::create(std::vector<AddedToken> tokens, const Vocabulary& vocabulary,
                                        std::string_view where) {
  AddedTokens added;
  std::unordered_map<std::string, int32_t> ids;
  auto next_id = static_cast<int32_t>(vocabulary.size());
  std::vector<AddedToken> plain;
  for (AddedToken& token : tokens) {
    const auto in_model = vocabulary.find(token.content);
    const auto earlier = ids.find(token.content);
    const int32_t id = earlier != ids.end()           ? earlier->second
                       : in_model != vocabulary.end() ? in_model->second
                                                      : next_id;
    if (id != token.id)
      return make_error(ErrorCode::kInvalidData,
                        "{}: added token '{}': expected id {} ({}), found {}; write the file again with the tokenizers "
                        "library",
                        where, token.content, id, id == next_id ? "the next free one" : "that of the vocabulary",
                        token.id);
    const auto known = added.by_id_.find(id);
    if (known != added.by_id_.end() && same(known->second, token)) continue;
    next_id = std::max(next_id, id + 1);
    ids[token.content] = id;
    added.by_id_[id] = token;
    if (token.special && added.special_.insert(token.content).second) {
      added.tokens_.push_back(token);
    } else if (!added.special_.contains(token.content)) {
      plain.push_back(token);
    }
  }
  added.tokens_.insert(added.tokens_.end(), plain.begin(), plain.end());
  for (const AddedToken& token : added.tokens_)
    if (!token.normalized) added.raw_.add(token.content, token.id);
  return added;
}

const AddedToken* AddedTokens::by_id(int32_t id) const {
  const auto place = by_id_.find(id);
  return place == by_id_.end() ? nullptr : &place->second;
}

std::vector<Span> AddedTokens::split(std::string_view text, const StringFinder& finder, bool parse_special) const {
  std::vector<Span> spans;
  size_t done = 0;
  for (auto hit = finder.find(text, 0); hit.value >= 0; hit = finder.find(text, hit.end)) {
    const AddedToken& token = by_id_.at(hit.value);
    if (!parse_special && token.special) continue;
    if (token.single_word && (word_before(text, hit.begin) || word_at(text, hit.end))) continue;
    size_t begin = hit.begin;
    size_t end = hit.end;
    if (token.lstrip) begin = std::max(skip_space_back(text, begin), done);
    if (token.rstrip) end = skip_space(text, end);
    if (done < begin) spans.push_back({done, begin, -1});
    // Nothing is left of a token of spaces when the one before it has stripped them.
    if (begin < end) spans.push_back({begin, end, hit.value});
    done = end;
  }
  if (done < text.size()) spans.push_back({done, text.size(), -1});
  return spans;
}

}  // namespace quadrille::tokenizer
