// SPDX-License-Identifier: Apache-2.0
// Where Oniguruma, for which the patterns are written, and PCRE2, which runs them, do not mean the same.
#include <gtest/gtest.h>

#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  const auto regex = Regex::compile(pattern);
  EXPECT_TRUE(regex.ok()) << pattern << ": " << (regex.ok() ? "" : regex.error().message);
  std::vector<Match> found;
  if (regex) {
    EXPECT_TRUE(regex->find_all(text, found).ok());
  }
  std::vector<std::string> out;
  for (const Match& match : found) out.push_back(text.substr(match.begin, match.end - match.begin));
  return out;
}
using Strings = std::vector<std::string>;

// Every character of \s is White_Space and the other way round.
TEST(Regex, SpaceIsWhiteSpace) {
  const auto space = Regex::compile("\\s");
  const auto other = Regex::compile("\\S");
  for (char32_t c = 0; c < 0x11000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(text, c);
    std::vector<Match> found;
    ASSERT_TRUE(space->find_all(text, found).ok());
    EXPECT_EQ(!found.empty(), is_white_space(c)) << std::hex << static_cast<uint32_t>(c);
    found.clear();
    ASSERT_TRUE(other->find_all(text, found).ok());
    EXPECT_EQ(found.empty(), is_white_space(c)) << std::hex << static_cast<uint32_t>(c);
  }
}

TEST(Regex, WhatTheFieldUses) {
  const std::string qwen =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  EXPECT_EQ(matches(qwen, "It's  12!\n x"), (Strings{"It", "'s", " ", " ", "1", "2", "!\n", " x"}));
  EXPECT_EQ(matches(qwen,
                    "a'\xC5\xBF"
                    "b"),
            (Strings{"a", "'\xC5\xBF", "b"}));  // long s folds to s
  EXPECT_EQ(matches(R"(\p{N}{1,3})", "12345"), (Strings{"123", "45"}));
}

TEST(Regex, Dialect) {
  EXPECT_EQ(matches(R"([ab]{1,2}+)", "abab"), (Strings{"abab"}));  // a repeated interval, not a possessive one
  EXPECT_EQ(matches(R"(a{,2})", "aaa"), (Strings{"aa", "a"}));
  EXPECT_EQ(matches(R"(\h+)", "x1F g"), (Strings{"1F"}));  // hexadecimal digits
  EXPECT_EQ(matches(R"([a-d&&[^bc]]+)", "abcd"), (Strings{"a", "d"}));
  EXPECT_EQ(matches(R"([a[x-z]]+)", "axb"), (Strings{"ax"}));
  EXPECT_EQ(matches(R"([^\S\n]+)", "a \n b"), (Strings{" ", " "}));
  EXPECT_EQ(matches(R"(^.)", "a\nb"), (Strings{"a", "b"}));  // line anchors
  EXPECT_EQ(matches(R"((?m:a.b))", "a\nb"), (Strings{"a\nb"}));
  EXPECT_EQ(matches(R"(a.b)", "a\nb"), (Strings{}));
  EXPECT_EQ(matches(R"(\w+)", "e\xCC\x81-x"), (Strings{"e\xCC\x81", "x"}));  // marks are word characters
  EXPECT_EQ(matches(R"([[:punct:]])", "a$."), (Strings{"$", "."}));
  EXPECT_EQ(matches(R"(\p{Punct})", "a$."), (Strings{"."}));
  EXPECT_EQ(matches(R"(\p{^Lu}+)", "aB"), (Strings{"a"}));
  EXPECT_EQ(matches(R"(\p{Han}+)", "\xE3\x80\x82\xE4\xBD\xA0"), (Strings{"\xE4\xBD\xA0"}));  // script, not extensions
  EXPECT_EQ(matches(R"(x*)", "ax"), (Strings{"", "x"}));
  EXPECT_EQ(matches(R"([]a]+)", "]a"), (Strings{"]a"}));
  EXPECT_EQ(matches(R"(a{x})", "a{x}"), (Strings{"a{x}"}));
}

TEST(Regex, ErrorsNameThePlace) {
  for (const char* pattern : {"(", "[a", "a\\", "(?q)", "\\p{Nonsense}", "[[:nonsense:]]", "\\x{110000}", "[b-a]", "*"})
    EXPECT_FALSE(Regex::compile(pattern).ok()) << pattern;
  EXPECT_NE(Regex::compile("ab\\p{Nonsense}").error().message.find("Nonsense"), std::string::npos);
  EXPECT_FALSE(Regex::compile(std::string(100'000, 'a')).ok());
  EXPECT_FALSE(Regex::compile(std::string(10'000, '(')).ok());
  EXPECT_FALSE(Regex::compile(std::string(10'000, '[')).ok());
}

TEST(Regex, StepsAreBounded) {
  const auto regex = Regex::compile("(a+)+[^a]");
  ASSERT_TRUE(regex.ok());
  std::vector<Match> found;
  const Status status = regex->find_all(std::string(5000, 'a'), found);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kCapacity);
}

}  // namespace
}  // namespace quadrille::tokenizer
