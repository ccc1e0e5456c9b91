// SPDX-License-Identifier: Apache-2.0
// The text side of a model folder: tokenizer and chat template, as commands and sessions use them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "engine/text_stream.h"
#include "model/config.h"
#include "model/tokenizer/tokenizer.h"

namespace quadrille::session {

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class TextModel {
 public:
  // Errors of the folder's tokenizer files.
  static Result<TextModel> load(const std::string& folder);

  const tokenizer::Tokenizer& tokenizer() const { return tokenizer_; }
  bool has_chat_template() const { return tokenizer_.has_chat_template(); }
  // `special`: with the tokens that the tokenizer puts around a text (a leading <s>).
  Result<std::vector<int32_t>> encode(std::string_view text, bool special) const;
  // The conversation as a prompt for the next answer of the assistant. kUnsupported without a template.
  Result<std::vector<int32_t>> encode_chat(const std::vector<Message>& messages) const;
  // Streams for the engine; special tokens give no text.
  engine::TextStreamFactory text_streams() const;
  // What ends an answer: the ids of the config files and the tokenizer's own.
  std::vector<int32_t> stop_ids(const model::ModelConfig& config) const;

 private:
  explicit TextModel(tokenizer::Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}
  tokenizer::Tokenizer tokenizer_;
};

}  // namespace quadrille::session
