// SPDX-License-Identifier: Apache-2.0
// Text to ids and back, as the model's own tokenizer.json says: BPE in its byte-level and SentencePiece spellings.
// Results equal those of the Hugging Face tokenizers library. Used by engine and cli.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace quadrille::tokenizer {

class DecodeChain;

// Immutable and cheap to copy; all calls may run on several threads at once.
class Tokenizer {
 public:
  // Reads tokenizer.json, and where they are there tokenizer_config.json, special_tokens_map.json and
  // chat_template.jinja of a model folder. Errors: kNotFound, kIo, kInvalidData, kUnsupported; each names file and key.
  static Result<Tokenizer> load(const std::string& folder);
  // tokenizer.json alone; `where` heads the errors. There is no chat template then.
  static Result<Tokenizer> parse(std::string_view tokenizer_json, std::string_view where);

  // `add_special_tokens`: what the post-processor puts around the text (a BOS for instance). `parse_special` false
  // keeps special tokens in the text as plain text (for text from strangers); added tokens that are not special are
  // recognised in either case. Errors: kInvalidArgument with the byte offset of invalid UTF-8, kCapacity.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens, bool parse_special = true) const;

  // Ids without a token (a padded vocabulary has such) give no text. Bytes that are no UTF-8 become U+FFFD.
  // Errors: kInvalidArgument for negative ids.
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // Highest id + 1.
  int32_t vocab_size() const;
  bool has_token(int32_t id) const;
  std::optional<int32_t> token_id(std::string_view token) const;
  // As it stands in the vocabulary (byte-level characters, U+2581); "" when there is no such token.
  std::string token_text(int32_t id) const;
  bool is_special(int32_t id) const;
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;

  bool has_chat_template() const;
  // The prompt of a conversation: `messages` a list of {"role", "content", ...}. `extra` (an object or null) goes to
  // the template as further variables and wins over bos_token, eos_token and the other special tokens of the model.
  // Encode the result with add_special_tokens = false: templates write BOS themselves.
  // Errors: kNotFound without a template, the template's own, kInvalidArgument when it calls raise_exception.
  Result<std::string> apply_chat_template(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                          const nlohmann::ordered_json& extra = {}) const;

  struct Impl;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

// Ids to text as they are generated. The texts of all calls together are decode() of all ids. One stream, one thread.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  // The text that has become certain: whole characters, often "" (a run of byte tokens is certain when it ends).
  std::string push(int32_t id);
  // What was held back. The stream is over.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer::Impl> impl_;  // outlives the chain, whose stages refer to it
  std::unique_ptr<DecodeChain> chain_;
  bool skip_special_tokens_;
};

}  // namespace quadrille::tokenizer
