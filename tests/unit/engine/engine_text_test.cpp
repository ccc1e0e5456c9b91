// SPDX-License-Identifier: Apache-2.0
// Text and stop strings through the engine: across tokens, across UTF-8 characters, at the end of an answer.
#include <gtest/gtest.h>

#include "engine/stop_strings.h"
#include "expected_answer.h"

namespace quadrille::engine {
namespace {

using namespace testing;

// Tokens that are single bytes of a text that repeats: characters and stop strings always lie across tokens.
class ByteStream : public TextStream {
 public:
  explicit ByteStream(std::string text) : text_(std::move(text)) {}
  std::string push(int32_t) override { return std::string(1, text_[next_++ % text_.size()]); }
  std::string finish() override { return ""; }

 private:
  std::string text_;
  size_t next_ = 0;
};

bool whole_characters(const std::string& text) {
  return incomplete_utf8_tail(text) == 0 && (text.empty() || (static_cast<unsigned char>(text[0]) & 0xC0) != 0x80);
}

Update run_bytes(const std::string& text, std::vector<std::string> stops, int64_t max_tokens) {
  FakeModel model(kVocab, 8, 512);
  Engine engine(model, {}, [text] { return std::make_unique<ByteStream>(text); });
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = max_tokens;
  request.stop_strings = std::move(stops);
  const RequestId id = *engine.submit(request);
  Update all;
  for (int step = 0; step < 1000; ++step) {
    const std::string before = all.text;
    const bool ended = collect(engine, id, all);
    EXPECT_TRUE(whole_characters(all.text.substr(before.size())));
    if (ended) break;
    EXPECT_TRUE(engine.step().ok());
  }
  return all;
}

TEST(Text, StopStringOverManyTokens) {
  const Update update = run_bytes("Hello <|end|> world ", {"<|end|>"}, 100);
  EXPECT_EQ(update.text, "Hello ");
  EXPECT_EQ(update.finish, FinishReason::kStop);
  EXPECT_EQ(update.tokens.size(), 13U);  // the tokens of the stop string belong to the answer
}

TEST(Text, NothingIsLostThatOnlyLooksLikeAStop) {
  const Update update = run_bytes("a<|e<|en<|end", {"<|end|>"}, 13);
  EXPECT_EQ(update.text, "a<|e<|en<|end");
  EXPECT_EQ(update.finish, FinishReason::kLength);
}

TEST(Text, CharactersAreWhole) {
  const std::string text = "a\u00E9\u20AC\U0001F600z";
  const Update update = run_bytes(text, {"\u20AC\u20AC"}, static_cast<int64_t>(text.size()));
  EXPECT_EQ(update.text, text);
  // A stop string inside characters of several bytes.
  EXPECT_EQ(run_bytes(text, {"\U0001F600"}, 100).text, "a\u00E9\u20AC");
  EXPECT_EQ(run_bytes(text, {"\u20AC\U0001F600"}, 100).text, "a\u00E9");
  // An answer that ends inside a character.
  EXPECT_EQ(run_bytes(text, {}, 5).text, "a\u00E9\uFFFD");
}

TEST(Text, RandomStopsEqualTheExpectedText) {
  std::mt19937_64 rng(3);
  int64_t stopped = 0;
  for (int round = 0; round < 60; ++round) {
    FakeModel model(kVocab, 12, 1024);
    Engine engine(model, {.max_sequences = 8}, letter_streams());
    std::vector<Request> requests;
    std::vector<RequestId> ids;
    for (int i = 0; i < 8; ++i) {
      Request request = random_request(rng, 40, 120);
      for (uint64_t s = rng() % 3; s < 3; ++s) {
        std::string stop;
        for (uint64_t n = 1 + rng() % 5; n > 0; --n) stop += "abcde"[rng() % 5];
        request.stop_strings.push_back(stop);
      }
      ids.push_back(*engine.submit(request));
      requests.push_back(std::move(request));
    }
    run_to_end(engine);
    for (size_t i = 0; i < ids.size(); ++i) {
      const Update got = finished(engine, ids[i]);
      EXPECT_TRUE(same_answer(got, expected_answer(requests[i])));
      stopped += got.finish == FinishReason::kStop ? 1 : 0;
    }
  }
  EXPECT_GT(stopped, 100);
}

// Text that a tokenizer gives only in finish() may complete a stop string.
class LateStream : public TextStream {
 public:
  std::string push(int32_t) override { return "x"; }
  std::string finish() override { return "yz!"; }
};

TEST(Text, WhatTheTokenizerHoldsComesAtTheEnd) {
  FakeModel model(kVocab, 8, 512);
  Engine engine(model, {}, [] { return std::make_unique<LateStream>(); });
  Request request;
  request.prompt = {1};
  request.max_tokens = 2;
  const RequestId plain = *engine.submit(request);
  request.stop_strings = {"xyz"};
  const RequestId cut = *engine.submit(request);
  run_to_end(engine);
  EXPECT_EQ(finished(engine, plain).text, "xxyz!");
  const Update update = finished(engine, cut);
  EXPECT_EQ(update.text, "x");
  EXPECT_EQ(update.finish, FinishReason::kStop);
}

}  // namespace
}  // namespace quadrille::engine
