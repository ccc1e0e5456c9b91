// SPDX-License-Identifier: Apache-2.0
// Corners of encoding, each as the tokenizers library has it (tests/data/tokenizers/make_cases.py), and the limits.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "model/tokenizer/tokenizer.h"
#include "support/golden.h"

namespace quadrille::tokenizer {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

TEST(Corners, EncodeAndDecodeAsTheLibrary) {
  std::ifstream file(quadrille::testing::data_path("tokenizers/corner_cases.jsonl"));
  int cases = 0;
  for (std::string text; std::getline(file, text); ++cases) {
    const json record = json::parse(text);
    SCOPED_TRACE(record["name"].get<std::string>());
    const auto tokenizer = Tokenizer::parse(record["tokenizer"].dump(), "corner");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    for (const json& line : record["lines"]) {
      const auto input = line[0].get<std::string>();
      const auto ids = line[1].get<Ids>();
      SCOPED_TRACE(line[0].dump());
      EXPECT_EQ(*tokenizer->encode(input, false), ids);
      EXPECT_EQ(*tokenizer->encode(input, true), line[2].get<Ids>());
      EXPECT_EQ(*tokenizer->encode(input, false, false), line[3].get<Ids>());
      EXPECT_EQ(*tokenizer->decode(ids, false), line[4].get<std::string>());
      EXPECT_EQ(*tokenizer->decode(ids, true), line[5].get<std::string>());
    }
  }
  EXPECT_GT(cases, 50);
}

Tokenizer bundled(const std::string& name) {
  auto tokenizer = Tokenizer::load(quadrille::testing::data_path("tokenizers/" + name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(*tokenizer);
}

TEST(Encode, InvalidUtf8NamesTheByte) {
  const Tokenizer tokenizer = bundled("qwen");
  for (const std::string& bad : {std::string("ab\xFF"
                                             "c"),
                                 std::string("ab\xC3"), std::string("ab\xED\xA0\x80"), std::string("ab\xC0\x80"),
                                 std::string("ab\xF4\x90\x80\x80")}) {
    const auto ids = tokenizer.encode(bad, false);
    ASSERT_FALSE(ids.ok());
    EXPECT_EQ(ids.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(ids.error().message.find("offset 2"), std::string::npos) << ids.error().message;
  }
}

TEST(Encode, SpecialTokensOfStrangersStayText) {
  const Tokenizer tokenizer = bundled("qwen");
  const int32_t end = *tokenizer.token_id("<|im_end|>");
  const auto parsed = *tokenizer.encode("a<|im_end|>b", false);
  const auto plain = *tokenizer.encode("a<|im_end|>b", false, false);
  EXPECT_NE(std::find(parsed.begin(), parsed.end(), end), parsed.end());
  EXPECT_EQ(std::find(plain.begin(), plain.end(), end), plain.end());
  EXPECT_EQ(*tokenizer.decode(plain, true), "a<|im_end|>b");
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// One piece without a cut: what is quadratic in its length takes hours here. The bound leaves room for sanitizers.
TEST(Encode, LongPiecesTakeTimeNearLinear) {
  std::string letters;
  uint32_t state = 1;
  while (letters.size() < 1'000'000) {
    state = state * 1664525 + 1013904223;
    letters += static_cast<char>('a' + (state >> 24) % 26);
  }
  for (const char* name : {"qwen", "sentencepiece", "deepseek"}) {
    const Tokenizer tokenizer = bundled(name);
    for (const std::string& text :
         {letters, std::string(1'000'000, ' '), std::string(1'000'000, '1'), std::string(1'000'000, '\n')}) {
      Ids ids;
      const double seconds = seconds_of([&] { ids = *tokenizer.encode(text, false); });
      EXPECT_LT(seconds, 60) << name;
      EXPECT_EQ(*tokenizer.decode(ids, false), text) << name;
    }
  }
}

TEST(Encode, AMillionTokens) {
  const Tokenizer tokenizer = bundled("llama3");
  std::string text;
  while (text.size() < 4'000'000)
    text += "The tokens of expert 17 and 2048 others,\n don't wait. \xE4\xBD\xA0\xE5\xA5\xBD ";
  const auto ids = tokenizer.encode(text, true);
  ASSERT_TRUE(ids.ok());
  EXPECT_GT(ids->size(), 1'000'000u);
  EXPECT_EQ(*tokenizer.decode(*ids, true), text);
}

// Marks in wrong order are sorted by class; an exchange sort would never end here.
TEST(Encode, LongRunsOfMarksNormalize) {
  const Tokenizer tokenizer = bundled("qwen");
  std::string text = "a";
  for (int i = 0; i < 200'000; ++i) text += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";  // above, below
  const auto ids = tokenizer.encode(text, false);
  ASSERT_TRUE(ids.ok());
  const std::string back = *tokenizer.decode(*ids, false);
  EXPECT_EQ(back.substr(0, 5), "\xE1\xBA\xA1\xCC\xA3");  // a with dot below, then the other dots
}

TEST(Encode, CopiesShareOneTokenizer) {
  const Tokenizer tokenizer = bundled("neox");
  const Tokenizer copy = tokenizer;
  EXPECT_EQ(*copy.encode("a  b", false), *tokenizer.encode("a  b", false));
}

}  // namespace
}  // namespace quadrille::tokenizer
