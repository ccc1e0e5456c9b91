// SPDX-License-Identifier: Apache-2.0
// Streaming: what is certain leaves at once, what is not waits, and nothing is lost.
#include <gtest/gtest.h>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/unicode.h"
#include "support/golden.h"

namespace quadrille::tokenizer {
namespace {

using Ids = std::vector<int32_t>;

Tokenizer bundled(const std::string& name) {
  auto tokenizer = Tokenizer::load(quadrille::testing::data_path("tokenizers/" + name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(*tokenizer);
}

TEST(Stream, HoldsBackHalfACharacter) {
  const Tokenizer tokenizer = bundled("qwen");
  // The four bytes of one character as four byte tokens.
  const std::string emoji = "\xF0\x9F\xA6\x9A";
  Ids ids;
  for (const char byte : emoji) {
    std::string text;
    const auto value = static_cast<uint8_t>(byte);
    append_utf8(text, value >= 0xA1 && value != 0xAD ? value : value <= 0xA0 ? 0x100 + value - 0x7F + 33 : 0x143);
    ASSERT_TRUE(tokenizer.token_id(text).has_value()) << text;
    ids.push_back(*tokenizer.token_id(text));
  }
  StreamDecoder stream(tokenizer, true);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[1]), "");
  EXPECT_EQ(stream.push(ids[2]), "");
  EXPECT_EQ(stream.push(ids[3]), emoji);
  EXPECT_EQ(stream.finish(), "");
  StreamDecoder cut(tokenizer, true);
  EXPECT_EQ(cut.push(ids[0]), "");
  EXPECT_EQ(cut.push(ids[1]), "");
  EXPECT_EQ(cut.push(*tokenizer.token_id("a")),
            "\xEF\xBF\xBD"
            "a");
}

TEST(Stream, PlainTokensLeaveAtOnce) {
  for (const char* name : {"qwen", "sentencepiece", "llama3"}) {
    const Tokenizer tokenizer = bundled(name);
    const Ids ids = *tokenizer.encode("the boxer of two", false);
    StreamDecoder stream(tokenizer, true);
    std::string text;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string part = stream.push(ids[i]);
      if (i > 0) {  // the first may be the space that is stripped
        EXPECT_FALSE(part.empty()) << name;
      }
      text += part;
    }
    EXPECT_EQ(stream.finish(), "") << name;
    EXPECT_EQ(text, "the boxer of two") << name;
  }
}

TEST(Stream, AByteRunWaitsForItsEnd) {
  const Tokenizer tokenizer = bundled("sentencepiece");
  const int32_t c3 = *tokenizer.token_id("<0xC3>");
  const int32_t a9 = *tokenizer.token_id("<0xA9>");
  const int32_t ff = *tokenizer.token_id("<0xFF>");
  const int32_t a = *tokenizer.token_id("a");
  StreamDecoder stream(tokenizer, true);
  EXPECT_EQ(stream.push(a), "a");
  EXPECT_EQ(stream.push(c3), "");
  EXPECT_EQ(stream.push(a9), "");
  EXPECT_EQ(stream.push(a),
            "\xC3\xA9"
            "a");
  // One bad byte makes every byte of the run U+FFFD, which is why the run has to wait.
  EXPECT_EQ(*tokenizer.decode(Ids{a, c3, a9, ff, a}, true),
            "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
            "a");
}

TEST(Stream, StripsOneSpaceOfTheTextOnly) {
  const Tokenizer tokenizer = bundled("sentencepiece");
  const Ids ids = *tokenizer.encode("  two", false);
  EXPECT_EQ(*tokenizer.decode(ids, true), "  two");
  StreamDecoder stream(tokenizer, true);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  EXPECT_EQ(text + stream.finish(), "  two");
}

TEST(Decode, IdsWithoutATokenGiveNothing) {
  const Tokenizer tokenizer = bundled("qwen");
  const int32_t a = *tokenizer.token_id("a");
  EXPECT_EQ(*tokenizer.decode(Ids{a, tokenizer.vocab_size() + 5, a, INT32_MAX}, true), "aa");
  const auto negative = tokenizer.decode(Ids{a, -2}, true);
  ASSERT_FALSE(negative.ok());
  EXPECT_EQ(negative.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(negative.error().message.find("token 1"), std::string::npos);
}

TEST(Decode, SpecialTokensAreSkippedOrKept) {
  const Tokenizer tokenizer = bundled("qwen");
  const Ids ids = *tokenizer.encode("a<|im_end|><think>b", false);
  EXPECT_EQ(*tokenizer.decode(ids, true), "a<think>b");
  EXPECT_EQ(*tokenizer.decode(ids, false), "a<|im_end|><think>b");
}

}  // namespace
}  // namespace quadrille::tokenizer
