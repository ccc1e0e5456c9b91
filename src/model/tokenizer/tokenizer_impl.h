// SPDX-License-Identifier: Apache-2.0
// The parts of a loaded tokenizer, for the units of this folder only.
#pragma once

#include <map>

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/decoder.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"

namespace quadrille::tokenizer {

struct Tokenizer::Impl {
  std::string where;
  AddedTokens added;
  std::vector<std::unique_ptr<Normalizer>> normalizers;
  std::vector<std::unique_ptr<PreTokenizer>> pre_tokenizers;
  BpeModel model;
  PostProcessor post_processor;
  DecoderParts decoders;
  std::vector<const std::string*> model_texts;  // [ids of the model] its token, null where there is none
  int32_t vocab_size = 0;

  // From tokenizer_config.json and special_tokens_map.json: bos_token, eos_token, ... as texts.
  std::map<std::string, std::string> special_texts;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  // A template that cannot be read fails when it is asked for: encoding does not need it.
  std::optional<Result<ChatTemplate>> chat_template;

  // Builds everything that tokenizer.json decides.
  static Result<std::shared_ptr<Impl>> build(const formats::Json& json, std::string_view where);

  // The token of `id`, null when there is none.
  const std::string* text_of(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view token) const;

  Status normalize(AlignedText& text) const;
  Status encode_span(AlignedText text, bool parse_special, BpeModel::Scratch& scratch, std::vector<int32_t>& ids) const;
  Status encode_piece(std::string text, size_t start_bytes, BpeModel::Scratch& scratch,
                      std::vector<int32_t>& ids) const;
};

// Reads the files beside tokenizer.json. Called by Tokenizer::load. (tokenizer_files.cpp)
Status read_tokenizer_files(const std::string& folder, Tokenizer::Impl& impl);

}  // namespace quadrille::tokenizer
