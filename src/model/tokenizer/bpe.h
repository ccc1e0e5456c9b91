// SPDX-License-Identifier: Apache-2.0
// The BPE model of tokenizer.json: from a piece of text to ids. Called by tokenizer.cpp for every piece.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "formats/json.h"
#include "model/tokenizer/vocabulary.h"

namespace quadrille::tokenizer {

class BpeModel {
 public:
  // Reads "model" of tokenizer.json. Errors: kUnsupported for other model types and for dropout, kInvalidData.
  static Result<BpeModel> read(const formats::JsonObject& file);

  // Working memory of one encode call: no thread shares it.
  struct Scratch;

  // Appends the ids of one piece. O(n log n) in its characters. Errors: kInvalidData when the unknown token is needed
  // and the vocabulary lacks it.
  Status encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    int32_t rank = 0;
    int32_t id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr size_t kDirectCharacters = 0x180;  // covers ASCII and the byte alphabet

  Status read_vocabulary(const formats::JsonObject& model);
  Status read_merges(const formats::JsonObject& model);
  void finish();
  std::optional<int32_t> id_of(std::string_view text) const;
  std::optional<int32_t> character_id(std::string_view piece, size_t begin, size_t end, std::string& buffer) const;
  void add_merge(uint64_t pair, int32_t rank, int32_t id);
  const Merge* find_merge(int32_t left, int32_t right) const;
  Status encode_fresh(std::string_view piece, Scratch& scratch) const;
  Status add_symbols(std::string_view piece, Scratch& scratch) const;
  Status add_unknown(Scratch& scratch) const;
  bool add_bytes(std::string_view text, Scratch& scratch) const;
  void merge_symbols(Scratch& scratch) const;

  Vocabulary vocabulary_;
  std::array<int32_t, kDirectCharacters> direct_{};  // id of a one-character text, -1 where there is none
  std::array<int32_t, 256> byte_ids_{};              // id of <0xXX>, -1 where there is none
  std::vector<Merge> merges_;                        // open addressing, a power of two
  std::string unknown_;
  std::string prefix_;  // continuing_subword_prefix
  std::string suffix_;  // end_of_word_suffix
  bool has_unknown_ = false;
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
};

struct BpeModel::Scratch {
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
    bool is_dead;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t id;  // what the merge makes
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::vector<int32_t> ids;
  std::string buffer;
  std::optional<int32_t> pending_unknown;
  // Pieces of this call: text repeats its words.
  std::unordered_map<std::string, std::vector<int32_t>, TextHash, std::equal_to<>> cache;
};

}  // namespace quadrille::tokenizer
