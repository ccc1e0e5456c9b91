// SPDX-License-Identifier: Apache-2.0
// One stage for each decoder of the field. A stage holds back only what a later token can still change: an incomplete
// character, a run of byte tokens (one bad byte spoils the run), spaces that may have to go.
#include "model/tokenizer/decoder.h"

#include <optional>

#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/component.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

// A stage that needs a token whole. After Fuse that means: the whole text.
class TokenStage : public DecodeStage {
 public:
  void push(std::string_view text, bool ends_token) final {
    if (!ends_token) {
      held_ += text;
      return;
    }
    if (held_.empty()) {
      token(text);
      return;
    }
    held_ += text;
    const std::string whole = std::move(held_);
    held_.clear();
    token(whole);
  }

 protected:
  virtual void token(std::string_view text) = 0;

 private:
  std::string held_;
};

// Bytes of byte-level BPE: a token whose characters all stand for bytes gives them, any other gives its own.
class ByteLevelStage : public TokenStage {
 public:
  void finish() override {
    std::string rest;
    characters_.finish(rest);
    next_->push(rest, true);
    next_->finish();
  }

 private:
  void token(std::string_view text) override {
    std::string bytes;
    for (size_t i = 0; i < text.size();) {
      const char32_t c = next_character(text, i);
      if (c >= kByteAlphabetEnd || kCharacterToByte[c] < 0) {
        bytes = text;
        break;
      }
      bytes += static_cast<char>(kCharacterToByte[c]);
    }
    std::string out;
    characters_.push(bytes, out);
    if (!out.empty()) next_->push(out, false);
  }

  Utf8Assembler characters_;
};

// <0xXX> tokens: a run of them is text when all of it is UTF-8, otherwise one U+FFFD a byte.
class ByteFallbackStage : public TokenStage {
 public:
  void finish() override {
    flush();
    next_->finish();
  }

 private:
  static int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }

  void token(std::string_view text) override {
    const bool is_byte = text.size() == 6 && text.starts_with("<0x") && text[5] == '>' && digit(text[4]) >= 0 &&
                         (digit(text[3]) >= 0 || text[3] == '+');
    if (is_byte) {
      bytes_ += static_cast<char>((text[3] == '+' ? 0 : digit(text[3]) * 16) + digit(text[4]));
      return;
    }
    flush();
    next_->push(text, true);
  }

  void flush() {
    if (bytes_.empty()) return;
    if (!first_invalid_utf8(bytes_)) {
      next_->push(bytes_, true);
    } else {
      for (size_t i = 0; i < bytes_.size(); ++i) next_->push("\xEF\xBF\xBD", true);
    }
    bytes_.clear();
  }

  std::string bytes_;
};

class FuseStage : public DecodeStage {
 public:
  void push(std::string_view text, bool) override { next_->push(text, false); }
  void finish() override {
    next_->push("", true);
    next_->finish();
  }
};

class ReplaceStage : public TokenStage {
 public:
  ReplaceStage(const Pattern& pattern, const std::string& content) : pattern_(pattern), content_(content) {}

 private:
  void token(std::string_view text) override {
    const auto replaced = pattern_.replace_all(text, content_);
    next_->push(replaced ? std::string_view(*replaced) : text, true);
  }
  const Pattern& pattern_;
  const std::string& content_;
};

// A literal of one character cannot lie across two parts: nothing has to wait.
class ReplaceCharacterStage : public DecodeStage {
 public:
  ReplaceCharacterStage(const Pattern& pattern, const std::string& content) : pattern_(pattern), content_(content) {}
  void push(std::string_view text, bool ends_token) override {
    const auto replaced = pattern_.replace_all(text, content_);
    next_->push(replaced ? std::string_view(*replaced) : text, ends_token);
  }

 private:
  const Pattern& pattern_;
  const std::string& content_;
};

// Takes up to `start` times the character from the front of each token; nothing has to wait.
class StripFrontStage : public DecodeStage {
 public:
  StripFrontStage(std::string_view character, size_t start) : character_(character), start_(start), left_(start) {}
  void push(std::string_view text, bool ends_token) override {
    while (left_ > 0 && text.starts_with(character_)) {
      text.remove_prefix(character_.size());
      --left_;
    }
    if (!text.empty()) left_ = 0;
    next_->push(text, ends_token);
    if (ends_token) left_ = start_;
  }

 private:
  std::string_view character_;
  size_t start_;
  size_t left_;
};

class StripStage : public TokenStage {
 public:
  StripStage(std::string_view character, size_t start, size_t stop)
      : character_(character), start_(start), stop_(stop) {}

 private:
  void token(std::string_view text) override {
    for (size_t i = 0; i < start_ && text.starts_with(character_); ++i) text.remove_prefix(character_.size());
    for (size_t i = 0; i < stop_ && text.ends_with(character_); ++i) text.remove_suffix(character_.size());
    next_->push(text, true);
  }
  std::string_view character_;
  size_t start_;
  size_t stop_;
};

// The replacement becomes a space, in the first token (where the prefix stands) nothing.
class MetaspaceStage : public DecodeStage {
 public:
  MetaspaceStage(std::string_view replacement, bool has_prefix) : replacement_(replacement), drop_(has_prefix) {}
  void push(std::string_view text, bool ends_token) override {
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const size_t length = character_length(text[i]);
      if (text.substr(i, length) != replacement_) {
        out += text.substr(i, length);
      } else if (!drop_) {
        out += ' ';
      }
      i += length;
    }
    next_->push(out, ends_token);
    if (ends_token) drop_ = false;
  }

 private:
  std::string_view replacement_;
  bool drop_;
};

// end_of_word_suffix: a space, nothing in the last token; so one token waits.
class SuffixStage : public TokenStage {
 public:
  explicit SuffixStage(const std::string& suffix) : suffix_(Pattern::literal(suffix)) {}
  void finish() override {
    if (waiting_) emit("");
    next_->finish();
  }

 private:
  void token(std::string_view text) override {
    if (waiting_) emit(" ");
    waiting_ = std::string(text);
  }
  void emit(std::string_view replacement) {
    const auto replaced = suffix_.replace_all(*waiting_, replacement);
    next_->push(replaced ? *replaced : *waiting_, true);
    waiting_.reset();
  }
  Pattern suffix_;
  std::optional<std::string> waiting_;
};

// No decoder: token texts with spaces between.
class JoinStage : public DecodeStage {
 public:
  void push(std::string_view text, bool ends_token) override {
    if (starts_token_ && !is_first_) next_->push(" ", false);
    next_->push(text, ends_token);
    is_first_ = false;
    starts_token_ = ends_token;
  }

 private:
  bool is_first_ = true;
  bool starts_token_ = true;
};

// A part that is a function from nothing to a stage.
template <typename Make>
class Part : public DecoderPart {
 public:
  explicit Part(Make make) : make_(std::move(make)) {}
  std::unique_ptr<DecodeStage> make_stage() const override { return make_(); }

 private:
  Make make_;
};

using Made = std::unique_ptr<DecoderPart>;
using Stage = std::unique_ptr<DecodeStage>;
template <typename Make>
Made part(Make make) {
  return std::make_unique<Part<Make>>(std::move(make));
}

Result<Made> read_replace(const formats::JsonObject& object) {
  QD_TRY(Pattern pattern, Pattern::read(object, "pattern"));
  QD_TRY(std::string content, object.get_string("content"));
  const bool is_character = pattern.literal_text() != nullptr && count_characters(*pattern.literal_text()) == 1;
  const auto shared = std::make_shared<const std::pair<Pattern, std::string>>(std::move(pattern), std::move(content));
  if (is_character) {
    return part([shared]() -> Stage { return std::make_unique<ReplaceCharacterStage>(shared->first, shared->second); });
  }
  return part([shared]() -> Stage { return std::make_unique<ReplaceStage>(shared->first, shared->second); });
}

Result<Made> read_strip(const formats::JsonObject& object) {
  QD_TRY(const std::string content, object.get_string("content"));
  if (count_characters(content) != 1) return object.error("content", "one character");
  QD_TRY(const int64_t start, object.get_int("start", 0, 1 << 30));
  QD_TRY(const int64_t stop, object.get_int("stop", 0, 1 << 30));
  const auto shared = std::make_shared<const std::string>(content);
  return part([shared, start, stop]() -> Stage {
    if (stop == 0) return std::make_unique<StripFrontStage>(*shared, static_cast<size_t>(start));
    return std::make_unique<StripStage>(*shared, static_cast<size_t>(start), static_cast<size_t>(stop));
  });
}

constexpr const char* kSupported = "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace, BPEDecoder and Sequence";

Result<Made> read_one(const std::string& type, const formats::JsonObject& object) {
  if (type == "ByteLevel") return part([]() -> Stage { return std::make_unique<ByteLevelStage>(); });
  if (type == "ByteFallback") return part([]() -> Stage { return std::make_unique<ByteFallbackStage>(); });
  if (type == "Fuse") return part([]() -> Stage { return std::make_unique<FuseStage>(); });
  if (type == "Replace") return read_replace(object);
  if (type == "Strip") return read_strip(object);
  if (type == "Metaspace") {
    QD_TRY(const std::string replacement, read_replacement(object));
    QD_TRY(const PrependScheme scheme, read_prepend_scheme(object));
    const auto shared = std::make_shared<const std::string>(replacement);
    const bool has_prefix = scheme != PrependScheme::kNever;
    return part([shared, has_prefix]() -> Stage { return std::make_unique<MetaspaceStage>(*shared, has_prefix); });
  }
  if (type == "BPEDecoder") {
    QD_TRY(const std::optional<std::string> suffix, object.find_string("suffix"));
    return part([text = suffix.value_or("</w>")]() -> Stage { return std::make_unique<SuffixStage>(text); });
  }
  return unsupported_type(object, type, kSupported);
}

}  // namespace

class DecodeChain::Output : public DecodeStage {
 public:
  void push(std::string_view text, bool) override { text_ += text; }
  void finish() override {}
  std::string take() { return std::exchange(text_, {}); }

 private:
  std::string text_;
};

Result<DecoderParts> read_decoder(const formats::JsonObject& file) {
  DecoderParts parts;
  if (!file.has("decoder")) {
    parts.push_back(part([]() -> Stage { return std::make_unique<JoinStage>(); }));
    return parts;
  }
  QD_TRY_STATUS(read_parts(file, "decoder", "decoders",
                           [&](const std::string& type, const formats::JsonObject& object) -> Status {
                             QD_TRY(Made made, read_one(type, object));
                             parts.push_back(std::move(made));
                             return {};
                           }));
  return parts;
}

DecodeChain::DecodeChain(const DecoderParts& parts) {
  for (const auto& made : parts) stages_.push_back(made->make_stage());
  stages_.push_back(std::make_unique<Output>());
  for (size_t i = 0; i + 1 < stages_.size(); ++i) stages_[i]->set_next(stages_[i + 1].get());
}

void DecodeChain::push_token(std::string_view text) {
  stages_.front()->push(text, true);
}
void DecodeChain::finish() {
  stages_.front()->finish();
}
std::string DecodeChain::take() {
  return static_cast<Output&>(*stages_.back()).take();
}

}  // namespace quadrille::tokenizer
