// SPDX-License-Identifier: Apache-2.0
// The "decoder" of tokenizer.json as a chain of stages through which token texts stream: what leaves the chain is
// final. decode() is the same chain, fed whole. Used by StreamDecoder.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::tokenizer {

// One stage. Text comes in parts; `ends_token` is set with the last part of a token. Parts are whole characters.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  virtual void push(std::string_view text, bool ends_token) = 0;
  // No more tokens: passes on what waits, then the end.
  virtual void finish() { next_->finish(); }
  void set_next(DecodeStage* next) { next_ = next; }

 protected:
  DecodeStage* next_ = nullptr;
};

// What one entry of "decoder" says; immutable, makes the stages of each stream.
class DecoderPart {
 public:
  virtual ~DecoderPart() = default;
  virtual std::unique_ptr<DecodeStage> make_stage() const = 0;
};

using DecoderParts = std::vector<std::unique_ptr<DecoderPart>>;

// The value of "decoder"; null gives one part that joins tokens with spaces. Sequences are flattened.
// Errors: kUnsupported names the type.
Result<DecoderParts> read_decoder(const formats::JsonObject& file);

// The stages of `parts` in a row; take() gives the text that has become final since the last call.
class DecodeChain {
 public:
  explicit DecodeChain(const DecoderParts& parts);
  DecodeChain(DecodeChain&&) = default;
  DecodeChain& operator=(DecodeChain&&) = default;

  void push_token(std::string_view text);
  void finish();
  std::string take();

 private:
  class Output;
  std::vector<std::unique_ptr<DecodeStage>> stages_;  // the last one is the Output
};

}  // namespace quadrille::tokenizer
