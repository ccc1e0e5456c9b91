// SPDX-License-Identifier: Apache-2.0
// UTF-8 by its table, over all characters and all short byte strings that matter; normal forms.
#include "model/tokenizer/unicode.h"

#include <gtest/gtest.h>

namespace quadrille::tokenizer {
namespace {

TEST(Utf8, EveryCharacterThereAndBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    ASSERT_FALSE(first_invalid_utf8(text).has_value()) << static_cast<uint32_t>(c);
    size_t position = 0;
    ASSERT_EQ(next_character(text, position), c);
    ASSERT_EQ(position, text.size());
    ASSERT_EQ(character_length(text[0]), text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Front front = utf8_front(std::string_view(text).substr(0, cut));
      ASSERT_EQ(front.kind, Utf8Front::Kind::kIncomplete);
      ASSERT_EQ(front.length, cut);
    }
  }
}

std::string assembled(const std::string& bytes) {
  Utf8Assembler assembler;
  std::string out;
  for (const char byte : bytes) assembler.push(std::string_view(&byte, 1), out);
  assembler.finish(out);
  return out;
}

// The example of the Unicode standard, table 3-8, and cuts of it.
TEST(Utf8, MaximalPartsBecomeOneReplacement) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(assembled("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
                      "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(assembled("\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
                      "A"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(assembled("\xF4\x91\x92\x93\xFF"
                      "A\x80\xBF"
                      "B"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(assembled("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
                      "A"),
            r + r + r + r + "A");
  EXPECT_EQ(assembled("ab\xE1\x80"), "ab" + r);
}

TEST(NormalForms, Corners) {
  EXPECT_EQ(normal_form("e\xCC\x81", NormalForm::kNfc), "\xC3\xA9");
  EXPECT_EQ(normal_form("\xC3\xA9", NormalForm::kNfd), "e\xCC\x81");
  EXPECT_EQ(normal_form("\xEF\xAC\x81", NormalForm::kNfc), "\xEF\xAC\x81");
  EXPECT_EQ(normal_form("\xEF\xAC\x81", NormalForm::kNfkc), "fi");
  EXPECT_EQ(normal_form("\xE2\x84\xAB", NormalForm::kNfc), "\xC3\x85");                  // Angstrom sign
  EXPECT_EQ(normal_form("\xE0\xA5\x98", NormalForm::kNfc), "\xE0\xA4\x95\xE0\xA4\xBC");  // excluded from composition
  EXPECT_EQ(normal_form("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", NormalForm::kNfc), "\xED\x95\x9C");  // Hangul
  EXPECT_EQ(normal_form("s\xCC\x87\xCC\xA3", NormalForm::kNfc), "\xE1\xB9\xA9");
  EXPECT_EQ(normal_form("\xEF\xB7\xBA", NormalForm::kNfkd).size(), 33u);  // the longest decomposition: 18 characters
}

}  // namespace
}  // namespace quadrille::tokenizer
