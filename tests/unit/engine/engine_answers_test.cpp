// SPDX-License-Identifier: Apache-2.0
// The answer to a request has the same bits whatever else happens: in any batch, with any chunk, preempted, out of the
// prefix cache, beside neighbours that come and go. The expected answer is computed without an engine.
#include <gtest/gtest.h>

#include "expected_answer.h"

namespace quadrille::engine {
namespace {

using namespace testing;

struct Setting {
  const char* name;
  int64_t batch;   // requests at once
  int64_t chunk;   // longest piece of a prompt
  int64_t tokens;  // of a step
  int64_t pages;
  bool prefix_cache;
};

void PrintTo(const Setting& s, std::ostream* out) {
  *out << s.name;
}

class Answers : public ::testing::TestWithParam<Setting> {};

bool is_tiny(const Setting& s) {
  return s.pages < 20;
}

// For a tiny cache short prompts with long answers, which grow until pages are short.
std::vector<Request> requests_for(const Setting& s) {
  std::mt19937_64 rng(7);
  std::vector<Request> requests;
  for (int64_t i = 0; i < std::max<int64_t>(s.batch, 12); ++i) {
    requests.push_back(is_tiny(s) ? random_request(rng, 100, 400) : random_request(rng, 300, 150));
    requests.back().ignore_stop_ids |= is_tiny(s);
  }
  return requests;
}

EngineOptions options_of(const Setting& s) {
  EngineOptions options;
  options.max_sequences = s.batch;
  options.prefill_chunk = s.chunk;
  options.max_batch_tokens = s.tokens;
  options.prefix_cache = s.prefix_cache;
  return options;
}

TEST_P(Answers, EqualTheExpectedBits) {
  const Setting s = GetParam();
  FakeModel model(kVocab, s.pages, 1024);
  Engine engine(model, options_of(s), letter_streams());
  const auto requests = requests_for(s);
  std::vector<RequestId> ids;
  for (const auto& request : requests) ids.push_back(*engine.submit(request));
  run_to_end(engine);
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_TRUE(same_answer(finished(engine, ids[i]), expected_answer(requests[i]))) << "request " << i;
  }
  EXPECT_EQ(model.broken_rule, "");
  EXPECT_LE(model.largest_step, s.tokens);
  const auto metrics = engine.metrics();
  EXPECT_EQ(metrics.free_pages, s.pages);
  EXPECT_EQ(metrics.running + metrics.waiting, 0);
  // A setting that claims to preempt or to reuse must have done so, or it shows nothing.
  if (is_tiny(s)) {
    EXPECT_GT(metrics.preemptions, 0);
  }
  if (s.prefix_cache) {
    EXPECT_GT(metrics.prefix_hits_tokens, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, Answers,
    ::testing::Values(Setting{"Alone", 1, 512, 512, 64, false}, Setting{"BatchOf2", 2, 512, 512, 64, false},
                      Setting{"BatchOf7", 7, 512, 512, 64, false}, Setting{"BatchOf64", 64, 512, 512, 640, false},
                      Setting{"ChunkOf1", 7, 1, 512, 64, false}, Setting{"ChunkOf16", 7, 16, 512, 64, false},
                      Setting{"ChunkOf16Alone", 1, 16, 512, 64, false},
                      Setting{"ChunkOf16In64", 64, 16, 512, 640, false}, Setting{"OneTokenAStep", 7, 512, 1, 64, false},
                      Setting{"FewTokensAStep", 64, 512, 5, 640, false}, Setting{"Preempted", 7, 512, 512, 9, false},
                      Setting{"PreemptedIn64", 64, 512, 512, 12, false},
                      Setting{"PreemptedChunkOf1", 7, 1, 512, 9, false}, Setting{"Prefix", 7, 512, 512, 64, true},
                      Setting{"PrefixAlone", 1, 512, 512, 64, true}, Setting{"PrefixChunkOf1", 7, 1, 512, 64, true},
                      Setting{"PrefixIn64", 64, 16, 512, 640, true}, Setting{"PrefixPreempted", 7, 512, 512, 9, true},
                      Setting{"PrefixPreemptedIn64", 64, 16, 512, 12, true}),
    [](const auto& setting) { return std::string(setting.param.name); });

// A request watched while others join, end and are cancelled around it at random.
TEST(AnswerBesideNeighbours, KeepsItsBits) {
  for (const int64_t pages : {14, 200}) {
    for (const bool prefix_cache : {false, true}) {
      std::mt19937_64 rng(static_cast<uint64_t>(pages) + (prefix_cache ? 1 : 0));
      FakeModel model(kVocab, pages, 1024);
      Engine engine(model,
                    {.max_batch_tokens = 64, .max_sequences = 8, .prefill_chunk = 32, .prefix_cache = prefix_cache},
                    letter_streams());
      Request watched = random_request(rng, 200, 150);
      watched.max_tokens = 150;
      watched.stop_ids.clear();
      std::vector<RequestId> neighbours;
      // Older ones first, so that it is the watched request that is preempted.
      for (int i = 0; i < 5; ++i) neighbours.push_back(*engine.submit(random_request(rng, 200, 150)));
      const RequestId id = *engine.submit(watched);
      Update got;
      int64_t steps = 0;
      while (!collect(engine, id, got)) {
        if (rng() % 4 == 0) neighbours.push_back(*engine.submit(random_request(rng, 200, 100)));
        if (rng() % 6 == 0) engine.cancel(neighbours[rng() % neighbours.size()]);
        ASSERT_TRUE(engine.step().ok());
        ASSERT_LT(++steps, 20000);
      }
      EXPECT_TRUE(same_answer(got, expected_answer(watched)));
      for (const RequestId neighbour : neighbours) engine.cancel(neighbour);
      run_to_end(engine);
      EXPECT_EQ(engine.metrics().free_pages, pages);
      EXPECT_EQ(model.broken_rule, "");
    }
  }
}

TEST(PrefixReuse, FindsTheSharedBeginningAndSaysSo) {
  FakeModel model(kVocab, 64, 1024);
  Engine engine(model, {.prefix_cache = true});
  Request request;
  for (int i = 0; i < 200; ++i) request.prompt.push_back(i % kVocab);
  request.max_tokens = 70;
  const RequestId first = *engine.submit(request);
  run_to_end(engine);
  const Update cold = finished(engine, first);
  EXPECT_EQ(cold.cached_prompt_tokens, 0);
  const RequestId second = *engine.submit(request);
  run_to_end(engine);
  const Update warm = finished(engine, second);
  EXPECT_EQ(warm.cached_prompt_tokens, 192);
  EXPECT_TRUE(same_answer(warm, cold));

  // The conversation goes on: prompt and answer are found, 269 of its positions are full pages.
  Request next = request;
  for (const auto& token : cold.tokens) next.prompt.push_back(token.id);
  next.prompt.push_back(3);
  const RequestId third = *engine.submit(next);
  run_to_end(engine);
  const Update follow_up = finished(engine, third);
  EXPECT_EQ(follow_up.cached_prompt_tokens, 256);
  EXPECT_TRUE(same_bits(follow_up.tokens, expected_answer(next).tokens));
}

TEST(PrefixReuse, OfAWholePromptRunsItsLastToken) {
  FakeModel model(kVocab, 64, 1024);
  Engine engine(model, {.prefix_cache = true});
  Request request;
  request.prompt.assign(128, 5);
  request.max_tokens = 3;
  const RequestId first = *engine.submit(request);
  const RequestId beside = *engine.submit(request);  // computes the same pages in the same step
  run_to_end(engine);
  const RequestId again = *engine.submit(request);
  run_to_end(engine);
  const Update update = finished(engine, again);
  EXPECT_EQ(update.cached_prompt_tokens, 64);  // the second page holds the last token, whose logits are wanted
  EXPECT_TRUE(same_bits(update.tokens, expected_answer(request).tokens));
  EXPECT_TRUE(same_bits(finished(engine, first).tokens, update.tokens));
  EXPECT_TRUE(same_bits(finished(engine, beside).tokens, update.tokens));
  EXPECT_EQ(engine.metrics().free_pages, 64);
}

// The same 64 tokens behind different beginnings are different pages.
TEST(PrefixReuse, EqualPagesBehindOtherBeginningsAreNotTaken) {
  FakeModel model(kVocab, 64, 1024);
  Engine engine(model, {.prefix_cache = true});
  std::mt19937_64 rng(2);
  for (int round = 0; round < 40; ++round) {
    Request request;
    for (uint64_t page = 1 + rng() % 5; page > 0; --page) {
      request.prompt.insert(request.prompt.end(), 64, static_cast<int32_t>(rng() % 2));
    }
    request.prompt.push_back(7);
    request.max_tokens = 3;
    const RequestId id = *engine.submit(request);
    run_to_end(engine);
    ASSERT_TRUE(same_bits(finished(engine, id).tokens, expected_answer(request).tokens)) << "round " << round;
  }
  EXPECT_GT(engine.metrics().prefix_hits_tokens, 40 * 64);
}

TEST(PrefixReuse, OwnPagesFoundAfterAPreemptionDoNotCount) {
  FakeModel model(kVocab, 5, 1024);
  Engine engine(model, {.prefix_cache = true});
  std::vector<Request> requests(2);
  for (size_t i = 0; i < 2; ++i) {
    requests[i].prompt.assign(66, static_cast<int32_t>(i));
    requests[i].max_tokens = i == 0 ? 80 : 200;  // the older one leaves two pages of the younger alone
  }
  const RequestId older = *engine.submit(requests[0]), younger = *engine.submit(requests[1]);
  run_to_end(engine);
  const auto metrics = engine.metrics();
  EXPECT_EQ(metrics.preemptions, 1);
  EXPECT_EQ(metrics.prefix_hits_tokens, 128);
  EXPECT_TRUE(same_bits(finished(engine, older).tokens, expected_answer(requests[0]).tokens));
  const Update update = finished(engine, younger);
  EXPECT_EQ(update.cached_prompt_tokens, 0);
  EXPECT_TRUE(same_bits(update.tokens, expected_answer(requests[1]).tokens));
}

TEST(PrefixReuse, PromptLogprobsAreComputedAllTheSame) {
  FakeModel model(kVocab, 64, 1024);
  Engine engine(model, {.prefix_cache = true}, letter_streams());
  Request request;
  for (int i = 0; i < 150; ++i) request.prompt.push_back((7 * i) % kVocab);
  request.max_tokens = 2;
  request.prompt_logprobs = 2;
  for (int round = 0; round < 2; ++round) {
    const RequestId id = *engine.submit(request);
    run_to_end(engine);
    const Update update = finished(engine, id);
    EXPECT_EQ(update.prompt_tokens.size(), 149U);
    EXPECT_TRUE(same_answer(update, expected_answer(request)));
    EXPECT_EQ(update.cached_prompt_tokens, 0);
  }
}

// Rows of logits are bounded: a prompt whose log-probabilities are wanted goes in pieces of so many tokens.
TEST(PromptLogprobs, KeepWithinTheRowsOfAStep) {
  for (const int64_t rows : {1, 2, 10}) {
    FakeModel model(kVocab, 64, 1024);
    Engine engine(model, {.max_logit_bytes = rows * kVocab * 4}, letter_streams());
    std::mt19937_64 rng(11);
    std::vector<Request> requests;
    std::vector<RequestId> ids;
    for (int i = 0; i < 3; ++i) {
      requests.push_back(random_request(rng, 200, 20));
      requests.back().prompt_logprobs = 3;
      ids.push_back(*engine.submit(requests.back()));
    }
    run_to_end(engine);
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_TRUE(same_answer(finished(engine, ids[i]), expected_answer(requests[i])));
    }
    EXPECT_LE(model.largest_rows, rows + 3);  // one a sequence may be added: that of its next token
  }
}

// Every row of a prompt, once and in order, though pieces are cut, pages taken away and positions known to the cache.
TEST(PromptLogits, AreHandedOnOnceAndInOrder) {
  std::mt19937_64 rng(23);
  for (const int64_t rows : {1, 7, 1000}) {
    FakeModel model(kVocab, 8, 1024);
    Engine engine(model, {.prefix_cache = true, .max_logit_bytes = rows * kVocab * 4}, letter_streams());
    std::vector<Request> requests;
    std::vector<std::vector<float>> logits(4);
    std::vector<RequestId> ids;
    for (size_t i = 0; i < 8; ++i) {
      requests.push_back(random_request(rng, 150, 40));
      if (i % 2 == 0) {
        requests.back().max_tokens = 0;
        requests.back().prompt_logprobs = -1;
        requests.back().prompt_logits = [to = &logits[i / 2]](std::span<const float> row) {
          to->insert(to->end(), row.begin(), row.end());
        };
      }
      ids.push_back(*engine.submit(requests.back()));
    }
    run_to_end(engine);
    for (size_t i = 0; i < ids.size(); ++i) {
      const Update update = finished(engine, ids[i]);
      EXPECT_TRUE(same_answer(update, expected_answer(requests[i]))) << i;
      if (i % 2 == 1) continue;
      std::vector<float> expected;
      for (size_t n = 1; n <= requests[i].prompt.size(); ++n) {
        const auto row = logits_after(std::span(requests[i].prompt).first(n), kVocab);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      EXPECT_EQ(logits[i / 2], expected) << i;
    }
    EXPECT_LE(model.largest_rows, rows + 8);
  }
}

}  // namespace
}  // namespace quadrille::engine
