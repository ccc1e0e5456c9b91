// SPDX-License-Identifier: Apache-2.0
// One small class for each normalizer of the field. Each keeps AlignedText::start_bytes true: a character put in front
// belongs to the first character, a character cut off takes its share away.
#include "model/tokenizer/normalizer.h"

#include <algorithm>

#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/component.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

size_t first_length(std::string_view text) {
  return text.empty() ? 0 : character_length(text[0]);
}

class FormNormalizer : public Normalizer {
 public:
  explicit FormNormalizer(NormalForm form) : form_(form) {}
  Status apply(AlignedText& text) const override {
    const std::string start = normal_form(std::string_view(text.text).substr(0, text.start_bytes), form_);
    text.text = normal_form(text.text, form_);
    if (text.start_bytes == 0) return {};
    // A mark behind the first character may have joined it.
    text.start_bytes = text.text.starts_with(start) ? std::max(start.size(), first_length(text.text))
                                                    : std::min(first_length(text.text), text.text.size());
    return {};
  }

 private:
  NormalForm form_;
};

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string text) : text_(std::move(text)) {}
  Status apply(AlignedText& text) const override {
    if (text.text.empty()) return {};
    text.text.insert(0, text_);
    if (text.start_bytes > 0) text.start_bytes += text_.size();
    return {};
  }

 private:
  std::string text_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  Status apply(AlignedText& text) const override {
    std::vector<Match> matches;
    QD_TRY_STATUS(pattern_.find_all(text.text, matches));
    if (matches.empty()) return {};
    std::string out;
    size_t start_bytes = 0;
    size_t end = 0;
    const auto keep = [&](size_t begin, size_t stop) {
      out += std::string_view(text.text).substr(begin, stop - begin);
      if (begin < text.start_bytes)
        start_bytes = out.size() - (stop - begin) + std::min(stop, text.start_bytes) - begin;
    };
    for (const Match& match : matches) {
      keep(end, match.begin);
      out += content_;
      // What replaces a match belongs to the last character of the match.
      const bool at_start = match.end == 0 ? text.start_bytes > 0 : match.end - 1 < text.start_bytes;
      if (at_start) start_bytes = out.size();
      end = match.end;
    }
    keep(end, text.text.size());
    text.text = std::move(out);
    text.start_bytes = start_bytes;
    return {};
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  Status apply(AlignedText& text) const override {
    size_t begin = 0;
    while (left_ && begin < text.text.size()) {
      size_t next = begin;
      if (!is_white_space(next_character(text.text, next))) break;
      begin = next;
    }
    size_t end = text.text.size();
    while (right_ && end > begin) {
      size_t last = end - 1;
      while ((text.text[last] & 0xC0) == 0x80) --last;
      size_t position = last;
      if (!is_white_space(next_character(text.text, position))) break;
      end = last;
    }
    text.text = text.text.substr(begin, end - begin);
    text.start_bytes = text.start_bytes > begin ? std::min(text.start_bytes - begin, text.text.size()) : 0;
    return {};
  }

 private:
  bool left_;
  bool right_;
};

// Maps every character on its own.
class CharacterNormalizer : public Normalizer {
 public:
  using Map = void (*)(std::string& out, char32_t c);
  explicit CharacterNormalizer(Map map) : map_(map) {}
  Status apply(AlignedText& text) const override {
    std::string out;
    out.reserve(text.text.size());
    size_t start_bytes = 0;
    for (size_t i = 0; i < text.text.size();) {
      const bool at_start = i < text.start_bytes;
      map_(out, next_character(text.text, i));
      if (at_start) start_bytes = out.size();
    }
    text.text = std::move(out);
    text.start_bytes = start_bytes;
    return {};
  }

 private:
  Map map_;
};

void append_unless_mark(std::string& out, char32_t c) {
  if (!is_mark(c)) append_utf8(out, c);
}

void append_byte_level(std::string& out, char32_t c) {
  std::string bytes;
  append_utf8(bytes, c);
  for (const char byte : bytes) append_utf8(out, kByteToCharacter[static_cast<uint8_t>(byte)]);
}

constexpr const char* kSupported =
    "NFC, NFD, NFKC, NFKD, Prepend, Replace, Strip, StripAccents, Lowercase, ByteLevel and Sequence";

Result<std::unique_ptr<Normalizer>> read_one(const std::string& type, const formats::JsonObject& object) {
  using Made = std::unique_ptr<Normalizer>;
  if (type == "NFC") return Made(new FormNormalizer(NormalForm::kNfc));
  if (type == "NFD") return Made(new FormNormalizer(NormalForm::kNfd));
  if (type == "NFKC") return Made(new FormNormalizer(NormalForm::kNfkc));
  if (type == "NFKD") return Made(new FormNormalizer(NormalForm::kNfkd));
  if (type == "Lowercase") return Made(new CharacterNormalizer(append_lower));
  if (type == "StripAccents") return Made(new CharacterNormalizer(append_unless_mark));
  if (type == "ByteLevel") return Made(new CharacterNormalizer(append_byte_level));
  if (type == "Prepend") {
    QD_TRY(std::string text, object.get_string("prepend"));
    return Made(new PrependNormalizer(std::move(text)));
  }
  if (type == "Replace") {
    QD_TRY(Pattern pattern, Pattern::read(object, "pattern"));
    QD_TRY(std::string content, object.get_string("content"));
    return Made(new ReplaceNormalizer(std::move(pattern), std::move(content)));
  }
  if (type == "Strip") {
    QD_TRY(const bool left, object.get_bool("strip_left"));
    QD_TRY(const bool right, object.get_bool("strip_right"));
    return Made(new StripNormalizer(left, right));
  }
  return unsupported_type(object, type, kSupported);
}

}  // namespace

Result<std::vector<std::unique_ptr<Normalizer>>> read_normalizer(const formats::JsonObject& file) {
  std::vector<std::unique_ptr<Normalizer>> parts;
  QD_TRY_STATUS(read_parts(file, "normalizer", "normalizers",
                           [&](const std::string& type, const formats::JsonObject& object) -> Status {
                             QD_TRY(std::unique_ptr<Normalizer> part, read_one(type, object));
                             parts.push_back(std::move(part));
                             return {};
                           }));
  return parts;
}

}  // namespace quadrille::tokenizer
