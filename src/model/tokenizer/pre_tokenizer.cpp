// SPDX-License-Identifier: Apache-2.0
// One small class for each pre-tokenizer of the field. Cutting keeps the buffer; rewriting makes a new one.
#include "model/tokenizer/pre_tokenizer.h"

#include <algorithm>
#include <functional>

#include "model/tokenizer/byte_alphabet.h"
#include "model/tokenizer/component.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

using Predicate = bool (*)(char32_t);
using FindMatches = std::function<Status(std::string_view, std::vector<Match>&)>;

// Cuts every piece at the matches that `find` gives for it.
Status split_pieces(Pieces& pieces, SplitBehavior behavior, bool invert, const FindMatches& find) {
  std::vector<Pieces::Piece> out;
  out.reserve(pieces.pieces.size());
  std::vector<Match> matches;
  for (const Pieces::Piece& piece : pieces.pieces) {
    matches.clear();
    QD_TRY_STATUS(find(pieces.view(piece), matches));
    for (const Match& part : split_at(matches, piece.end - piece.begin, behavior, invert)) {
      if (part.begin == part.end) continue;
      const size_t start = piece.start_bytes > part.begin ? std::min(piece.start_bytes, part.end) - part.begin : 0;
      out.push_back({piece.begin + part.begin, piece.begin + part.end, start});
    }
  }
  pieces.pieces = std::move(out);
  return {};
}

Status find_characters(std::string_view text, const std::function<bool(char32_t)>& wanted,
                       std::vector<Match>& matches) {
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    if (wanted(next_character(text, i))) matches.push_back({begin, i});
  }
  return {};
}

class SplitPreTokenizer : public PreTokenizer {
 public:
  SplitPreTokenizer(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  Status apply(Pieces& pieces) const override {
    return split_pieces(pieces, behavior_, invert_, [&](std::string_view text, std::vector<Match>& matches) {
      return pattern_.find_all(text, matches);
    });
  }

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class CharacterPreTokenizer : public PreTokenizer {
 public:
  CharacterPreTokenizer(std::function<bool(char32_t)> wanted, SplitBehavior behavior)
      : wanted_(std::move(wanted)), behavior_(behavior) {}
  Status apply(Pieces& pieces) const override {
    return split_pieces(pieces, behavior_, false, [&](std::string_view text, std::vector<Match>& matches) {
      return find_characters(text, wanted_, matches);
    });
  }

 private:
  std::function<bool(char32_t)> wanted_;
  SplitBehavior behavior_;
};

// Runs of word characters and runs of other visible characters.
class WhitespacePreTokenizer : public PreTokenizer {
 public:
  Status apply(Pieces& pieces) const override {
    return split_pieces(pieces, SplitBehavior::kRemoved, true, [](std::string_view text, std::vector<Match>& matches) {
      int previous = 0;
      for (size_t i = 0; i < text.size();) {
        const size_t begin = i;
        const char32_t c = next_character(text, i);
        const int kind = is_word(c) ? 1 : is_white_space(c) ? 0 : 2;
        if (kind != 0 && kind == previous) {
          matches.back().end = i;
        } else if (kind != 0) {
          matches.push_back({begin, i});
        }
        previous = kind;
      }
      return Status();
    });
  }
};

// Rewrites pieces one by one into a new buffer. `rewrite(piece text, appended text)` may change start_bytes.
template <typename Rewrite>
void rewrite_pieces(Pieces& pieces, size_t growth, Rewrite&& rewrite) {
  std::string text;
  text.reserve(pieces.text.size() * growth);
  for (Pieces::Piece& piece : pieces.pieces) {
    const size_t begin = text.size();
    piece.start_bytes = rewrite(pieces.view(piece), piece.start_bytes, text);
    piece.begin = begin;
    piece.end = text.size();
  }
  pieces.text = std::move(text);
}

class ByteLevelPreTokenizer : public PreTokenizer {
 public:
  ByteLevelPreTokenizer(bool add_prefix_space, std::optional<Regex> regex)
      : add_prefix_space_(add_prefix_space), regex_(std::move(regex)) {}

  Status apply(Pieces& pieces) const override {
    if (add_prefix_space_) add_space(pieces);
    if (regex_) {
      QD_TRY_STATUS(split_pieces(
          pieces, SplitBehavior::kIsolated, false,
          [&](std::string_view text, std::vector<Match>& matches) { return regex_->find_all(text, matches); }));
    }
    rewrite_pieces(pieces, 2, [](std::string_view in, size_t start_bytes, std::string& out) {
      const size_t begin = out.size();
      size_t start = 0;
      for (size_t i = 0; i < in.size(); ++i) {
        append_utf8(out, kByteToCharacter[static_cast<uint8_t>(in[i])]);
        if (i < start_bytes) start = out.size() - begin;
      }
      return start;
    });
    return {};
  }

 private:
  static void add_space(Pieces& pieces) {
    rewrite_pieces(pieces, 1, [](std::string_view in, size_t start_bytes, std::string& out) {
      const bool add = !in.starts_with(' ');
      if (add) out += ' ';
      out += in;
      return start_bytes > 0 && add ? start_bytes + 1 : start_bytes;
    });
  }

  bool add_prefix_space_;
  std::optional<Regex> regex_;
};

class MetaspacePreTokenizer : public PreTokenizer {
 public:
  MetaspacePreTokenizer(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme), split_(split) {}

  Status apply(Pieces& pieces) const override {
    rewrite_pieces(pieces, 1, [&](std::string_view in, size_t start_bytes, std::string& out) {
      const size_t begin = out.size();
      const bool may_prepend =
          scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && start_bytes > 0);
      if (may_prepend && !in.starts_with(' ') && !in.starts_with(replacement_)) out += replacement_;
      size_t start = start_bytes > 0 ? out.size() - begin : 0;
      for (size_t i = 0; i < in.size(); ++i) {
        if (in[i] == ' ') {
          out += replacement_;
        } else {
          out += in[i];
        }
        if (i < start_bytes) start = out.size() - begin;
      }
      return start;
    });
    if (!split_) return {};
    return split_pieces(pieces, SplitBehavior::kMergedWithNext, false,
                        [&](std::string_view text, std::vector<Match>& matches) {
                          return Pattern::literal(replacement_).find_all(text, matches);
                        });
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  bool split_;
};

// GPT-2's cut: contractions, words, numbers, other runs, spaces.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr const char* kSupported =
    "Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, "
    "BertPreTokenizer and Sequence";

using Made = std::unique_ptr<PreTokenizer>;

Result<Made> read_byte_level(const formats::JsonObject& object) {
  QD_TRY(const bool add_prefix_space, read_flag(object, "add_prefix_space", true));
  QD_TRY(const bool use_regex, read_flag(object, "use_regex", true));
  std::optional<Regex> regex;
  if (use_regex) {
    QD_TRY(regex, Regex::compile(kGpt2Pattern));
  }
  return Made(new ByteLevelPreTokenizer(add_prefix_space, std::move(regex)));
}

Result<Made> read_one(const std::string& type, const formats::JsonObject& object) {
  if (type == "ByteLevel") return read_byte_level(object);
  if (type == "Split") {
    QD_TRY(Pattern pattern, Pattern::read(object, "pattern"));
    QD_TRY(const SplitBehavior behavior, read_split_behavior(object, "behavior", std::nullopt));
    QD_TRY(const bool invert, read_flag(object, "invert", false));
    return Made(new SplitPreTokenizer(std::move(pattern), behavior, invert));
  }
  if (type == "Metaspace") {
    QD_TRY(std::string replacement, read_replacement(object));
    QD_TRY(const PrependScheme scheme, read_prepend_scheme(object));
    QD_TRY(const bool split, read_flag(object, "split", true));
    return Made(new MetaspacePreTokenizer(std::move(replacement), scheme, split));
  }
  if (type == "Digits") {
    QD_TRY(const bool individual, read_flag(object, "individual_digits", false));
    return Made(
        new CharacterPreTokenizer(is_numeric, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous));
  }
  if (type == "Punctuation") {
    QD_TRY(const SplitBehavior behavior, read_split_behavior(object, "behavior", SplitBehavior::kIsolated));
    return Made(new CharacterPreTokenizer(is_punctuation, behavior));
  }
  if (type == "Whitespace") return Made(new WhitespacePreTokenizer());
  if (type == "WhitespaceSplit") return Made(new CharacterPreTokenizer(is_white_space, SplitBehavior::kRemoved));
  if (type == "CharDelimiterSplit") {
    QD_TRY(const std::string delimiter, object.get_string("delimiter"));
    if (count_characters(delimiter) != 1) return object.error("delimiter", "one character");
    size_t position = 0;
    const char32_t wanted = next_character(delimiter, position);
    return Made(new CharacterPreTokenizer([wanted](char32_t c) { return c == wanted; }, SplitBehavior::kRemoved));
  }
  return unsupported_type(object, type, kSupported);
}

}  // namespace

Result<std::string> read_replacement(const formats::JsonObject& object) {
  QD_TRY(std::string replacement, object.get_string("replacement"));
  if (count_characters(replacement) != 1) return object.error("replacement", "one character");
  return replacement;
}

Result<PrependScheme> read_prepend_scheme(const formats::JsonObject& object) {
  QD_TRY(const bool add_prefix_space, read_flag(object, "add_prefix_space", true));
  QD_TRY(const std::optional<std::string> name, object.find_string("prepend_scheme"));
  if (name && *name != "first" && *name != "always" && *name != "never")
    return object.error("prepend_scheme", "'first', 'always' or 'never'");
  if (!add_prefix_space || name == "never") return PrependScheme::kNever;
  return name == "first" ? PrependScheme::kFirst : PrependScheme::kAlways;
}

Result<std::vector<std::unique_ptr<PreTokenizer>>> read_pre_tokenizer(const formats::JsonObject& file) {
  std::vector<std::unique_ptr<PreTokenizer>> parts;
  QD_TRY_STATUS(
      read_parts(file, "pre_tokenizer", "pretokenizers",
                 [&](const std::string& type, const formats::JsonObject& object) -> Status {
                   if (type == "BertPreTokenizer") {
                     parts.push_back(std::make_unique<CharacterPreTokenizer>(is_white_space, SplitBehavior::kRemoved));
                     parts.push_back(std::make_unique<CharacterPreTokenizer>(is_punctuation, SplitBehavior::kIsolated));
                     return {};
                   }
                   QD_TRY(Made part, read_one(type, object));
                   parts.push_back(std::move(part));
                   return {};
                 }));
  return parts;
}

}  // namespace quadrille::tokenizer
