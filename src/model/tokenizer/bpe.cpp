// SPDX-License-Identifier: Apache-2.0
// Characters become symbols of a linked list; a heap gives the merge of the lowest rank, the leftmost of equals.
#include "model/tokenizer/bpe.h"

#include <algorithm>

#include "model/tokenizer/component.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

constexpr int64_t kLargestId = (1 << 24) - 1;
constexpr size_t kCachedPieceBytes = 64;
constexpr size_t kCachedPieces = 20'000;

uint64_t pair_of(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

size_t slot_of(uint64_t pair, size_t slots) {
  pair *= 0x9E3779B97F4A7C15ull;
  return static_cast<size_t>(pair >> 20) & (slots - 1);
}

using Candidate = BpeModel::Scratch::Candidate;
bool later(const Candidate& a, const Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

Result<BpeModel> BpeModel::read(const formats::JsonObject& file) {
  QD_TRY(const std::optional<formats::JsonObject> model, file.find_object("model"));
  if (!model) return file.error("model", "an object");
  QD_TRY(const std::optional<std::string> type, model->find_string("type"));
  // Files of before the tag existed hold merges only when they are BPE.
  if (type ? *type != "BPE" : !model->has("merges")) return unsupported_type(*model, type.value_or("(none)"), "BPE");
  QD_TRY(const std::optional<double> dropout, model->find_double("dropout", 0, 1));
  if (dropout.value_or(0) != 0)
    return make_error(ErrorCode::kUnsupported, "{}: {} is not supported; dropout is for training, set it to null",
                      model->where("dropout"), *dropout);
  BpeModel bpe;
  QD_TRY(const std::optional<std::string> unknown, model->find_string("unk_token"));
  bpe.has_unknown_ = unknown.has_value();
  bpe.unknown_ = unknown.value_or("");
  QD_TRY(const std::optional<std::string> prefix, model->find_string("continuing_subword_prefix"));
  bpe.prefix_ = prefix.value_or("");
  QD_TRY(const std::optional<std::string> suffix, model->find_string("end_of_word_suffix"));
  bpe.suffix_ = suffix.value_or("");
  QD_TRY(bpe.fuse_unknown_, read_flag(*model, "fuse_unk", false));
  QD_TRY(bpe.byte_fallback_, read_flag(*model, "byte_fallback", false));
  QD_TRY(bpe.ignore_merges_, read_flag(*model, "ignore_merges", false));
  QD_TRY_STATUS(bpe.read_vocabulary(*model));
  QD_TRY_STATUS(bpe.read_merges(*model));
  bpe.finish();
  return bpe;
}

Status BpeModel::read_vocabulary(const formats::JsonObject& model) {
  QD_TRY(const std::optional<formats::JsonObject> vocab, model.find_object("vocab"));
  if (!vocab) return model.error("vocab", "an object of token texts and ids");
  vocabulary_.reserve(vocab->json().size());
  for (const auto& [text, id] : vocab->json().items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kLargestId)
      return vocab->error(text, fmt::format("an id from 0 to {}", kLargestId));
    vocabulary_.emplace(text, static_cast<int32_t>(id.get<int64_t>()));
  }
  return {};
}

Status BpeModel::read_merges(const formats::JsonObject& model) {
  const formats::Json* list = model.find("merges");
  if (list == nullptr || !list->is_array()) return model.error("merges", "a list");
  size_t slots = 16;
  while (slots < 2 * list->size()) slots *= 2;
  merges_.resize(slots);
  for (size_t i = 0; i < list->size(); ++i) {
    const formats::Json& item = (*list)[i];
    std::string left;
    std::string right;
    if (item.is_string()) {
      const auto& text = item.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      // "a b"; a second space would leave it open where to cut.
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        left = text.substr(0, space);
        right = text.substr(space + 1);
      }
    } else if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get<std::string>();
      right = item[1].get<std::string>();
    }
    const auto left_id = vocabulary_.find(left);
    const auto right_id = vocabulary_.find(right);
    const bool has_prefix = right.size() >= prefix_.size();
    const auto merged = vocabulary_.find(left + (has_prefix ? right.substr(prefix_.size()) : ""));
    if (left_id == vocabulary_.end() || right_id == vocabulary_.end() || merged == vocabulary_.end() || !has_prefix)
      return make_error(ErrorCode::kInvalidData,
                        "{}: expected \"a b\" or [\"a\", \"b\"] with a, b and ab in the vocabulary, found {}",
                        model.where(fmt::format("merges[{}]", i)), formats::json_excerpt(item));
    add_merge(pair_of(left_id->second, right_id->second), static_cast<int32_t>(i), merged->second);
  }
  return {};
}

void BpeModel::finish() {
  for (size_t c = 0; c < kDirectCharacters; ++c) {
    std::string text;
    append_utf8(text, static_cast<char32_t>(c));
    direct_[c] = id_of(text).value_or(-1);
  }
  for (size_t byte = 0; byte < 256; ++byte) byte_ids_[byte] = id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1);
}

void BpeModel::add_merge(uint64_t pair, int32_t rank, int32_t id) {
  size_t slot = slot_of(pair, merges_.size());
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) slot = (slot + 1) & (merges_.size() - 1);
  merges_[slot] = {pair, rank, id};  // the last of equal pairs counts
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  size_t slot = slot_of(pair, merges_.size());
  while (merges_[slot].pair != kNoPair) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    slot = (slot + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

std::optional<int32_t> BpeModel::id_of(std::string_view text) const {
  const auto place = vocabulary_.find(text);
  return place == vocabulary_.end() ? std::nullopt : std::optional(place->second);
}

Status BpeModel::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (piece.empty()) return {};
  if (piece.size() > kCachedPieceBytes) {
    QD_TRY_STATUS(encode_fresh(piece, scratch));
    ids.insert(ids.end(), scratch.ids.begin(), scratch.ids.end());
    return {};
  }
  auto place = scratch.cache.find(piece);
  if (place == scratch.cache.end()) {
    QD_TRY_STATUS(encode_fresh(piece, scratch));
    if (scratch.cache.size() >= kCachedPieces) scratch.cache.clear();
    place = scratch.cache.emplace(std::string(piece), scratch.ids).first;
  }
  ids.insert(ids.end(), place->second.begin(), place->second.end());
  return {};
}

Status BpeModel::encode_fresh(std::string_view piece, Scratch& scratch) const {
  scratch.ids.clear();
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = id_of(piece)) {
      scratch.ids.push_back(*id);
      return {};
    }
  }
  if (piece.size() > INT32_MAX / 2)
    return make_error(ErrorCode::kCapacity, "a piece of {} bytes is more than the tokenizer takes", piece.size());
  QD_TRY_STATUS(add_symbols(piece, scratch));
  merge_symbols(scratch);
  for (const Scratch::Symbol& symbol : scratch.symbols)
    if (!symbol.is_dead) scratch.ids.push_back(symbol.id);
  return {};
}

std::optional<int32_t> BpeModel::character_id(std::string_view piece, size_t begin, size_t end,
                                              std::string& buffer) const {
  const bool with_prefix = begin > 0 && !prefix_.empty();
  const bool with_suffix = end == piece.size() && !suffix_.empty();
  const std::string_view character = piece.substr(begin, end - begin);
  if (!with_prefix && !with_suffix) {
    buffer = character;
    if (character.size() > 2) return id_of(character);
    size_t position = 0;
    const char32_t c = next_character(character, position);
    if (c >= kDirectCharacters) return id_of(character);
    return direct_[c] < 0 ? std::nullopt : std::optional(direct_[c]);
  }
  buffer = with_prefix ? prefix_ : std::string();
  buffer += character;
  if (with_suffix) buffer += suffix_;
  return id_of(buffer);
}

Status BpeModel::add_symbols(std::string_view piece, Scratch& scratch) const {
  scratch.symbols.clear();
  scratch.pending_unknown.reset();
  const auto add = [&](int32_t id) { scratch.symbols.push_back({id, 0, 0, false}); };
  for (size_t begin = 0; begin < piece.size();) {
    const size_t end = begin + character_length(piece[begin]);
    const std::optional<int32_t> id = character_id(piece, begin, end, scratch.buffer);
    begin = end;
    if (id) {
      if (scratch.pending_unknown) add(*scratch.pending_unknown);
      scratch.pending_unknown.reset();
      add(*id);
    } else if (!byte_fallback_ || !add_bytes(scratch.buffer, scratch)) {
      QD_TRY_STATUS(add_unknown(scratch));
    }
  }
  if (scratch.pending_unknown) add(*scratch.pending_unknown);
  const auto count = static_cast<int32_t>(scratch.symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    scratch.symbols[static_cast<size_t>(i)].previous = i - 1;
    scratch.symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
  return {};
}

// All bytes of `text` as <0xXX>, or nothing at all. An unknown token that waits stays behind them, as in the library.
bool BpeModel::add_bytes(std::string_view text, Scratch& scratch) const {
  for (const char byte : text)
    if (byte_ids_[static_cast<uint8_t>(byte)] < 0) return false;
  for (const char byte : text) scratch.symbols.push_back({byte_ids_[static_cast<uint8_t>(byte)], 0, 0, false});
  return true;
}

// Without an unknown token the character is dropped.
Status BpeModel::add_unknown(Scratch& scratch) const {
  if (!has_unknown_) return {};
  const std::optional<int32_t> id = id_of(unknown_);
  if (!id)
    return make_error(ErrorCode::kInvalidData, "the vocabulary lacks its unknown token '{}', which this text needs",
                      unknown_);
  if (scratch.pending_unknown && !fuse_unknown_) scratch.symbols.push_back({*scratch.pending_unknown, 0, 0, false});
  scratch.pending_unknown = id;
  return {};
}

void BpeModel::merge_symbols(Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  const auto at = [&](int32_t i) -> Scratch::Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto candidate = [&](int32_t i) -> const Merge* { return find_merge(at(i).id, at(at(i).next).id); };
  const auto push = [&](int32_t i) {
    const Merge* merge = candidate(i);
    if (merge == nullptr) return;
    heap.push_back({merge->rank, i, merge->id});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i)
    if (const Merge* merge = candidate(i)) heap.push_back({merge->rank, i, merge->id});
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    const Scratch::Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    Scratch::Symbol& left = at(top.position);
    if (left.is_dead || left.next < 0) continue;
    const Merge* merge = candidate(top.position);
    // The neighbours have changed since; a pair that makes the same token still counts.
    if (merge == nullptr || merge->id != top.id) continue;
    Scratch::Symbol& right = at(left.next);
    right.is_dead = true;
    left.id = top.id;
    left.next = right.next;
    if (left.next >= 0) at(left.next).previous = top.position;
    if (left.previous >= 0) push(left.previous);
    if (left.next >= 0) push(top.position);
  }
}

}  // namespace quadrille::tokenizer
