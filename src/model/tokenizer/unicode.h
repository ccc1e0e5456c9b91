// SPDX-License-Identifier: Apache-2.0
// UTF-8 and the few character classes that tokenizers ask for, by the Unicode tables of utf8proc.
// Used by every other unit of this folder.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace quadrille::tokenizer {

// What stands at the front of a byte string.
struct Utf8Front {
  enum class Kind { kCharacter, kInvalid, kIncomplete };
  Kind kind;
  size_t length;  // bytes of the character; for kInvalid the longest part that no character can begin with (>= 1)
  char32_t character;
};
// `bytes` must not be empty. kIncomplete: more bytes may still make it a character.
Utf8Front utf8_front(std::string_view bytes);

// Offset of the first byte that is no part of a well-formed character, or nothing.
std::optional<size_t> first_invalid_utf8(std::string_view bytes);

// The character at `position` of well-formed text; moves `position` behind it.
char32_t next_character(std::string_view text, size_t& position);
// Bytes of the character whose first byte is `first` (well-formed text).
size_t character_length(char first);
void append_utf8(std::string& out, char32_t character);
size_t count_characters(std::string_view text);

// Bytes to text as they come in: complete characters leave at once, an incomplete one waits, and each longest
// impossible part becomes one U+FFFD (the rule of the Unicode standard, chapter 3, "U+FFFD substitution").
class Utf8Assembler {
 public:
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);

 private:
  std::string pending_;
};

bool is_white_space(char32_t c);  // property White_Space
bool is_numeric(char32_t c);      // Nd, Nl, No
bool is_mark(char32_t c);         // Mn, Mc, Me
bool is_punctuation(char32_t c);  // P* and the ASCII symbols
bool is_word(char32_t c);         // Alphabetic, marks, Nd, Pc and the two joiners
bool is_alphabetic(char32_t c);

void append_lower(std::string& out, char32_t c);  // full lower case of one character, without context
void append_upper(std::string& out, char32_t c);
char32_t title_character(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
// Linear in the text but for a sort of each run of combining marks.
std::string normal_form(std::string_view text, NormalForm form);

}  // namespace quadrille::tokenizer
