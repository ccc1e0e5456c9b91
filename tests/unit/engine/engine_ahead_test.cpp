// SPDX-License-Identifier: Apache-2.0
// An engine over a model that draws its own tokens: the next step is enqueued before the results of this one are read,
// what was planned in vain leaves no trace, and the host reads logits where only it can choose.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "expected_answer.h"
#include "fake_async_model.h"

namespace quadrille::engine {
namespace {

using namespace testing;
using ::testing::HasSubstr;

// Waits while a step is on its way, lazily or eagerly computed.
class Ahead : public ::testing::TestWithParam<bool> {
 protected:
  Ahead() { model.eager = GetParam(); }
  FakeAsyncModel model{kVocab, 8, 1024};
  Engine engine{model, {}};
};
INSTANTIATE_TEST_SUITE_P(Both, Ahead, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Eager" : "Lazy"; });

TEST_P(Ahead, TheNextStepIsEnqueuedBeforeThisOneIsRead) {
  const RequestId id = *engine.submit(simple(5, 5));
  EXPECT_TRUE(*engine.step());
  EXPECT_EQ(model.order, "EEC");
  EXPECT_EQ(engine.poll(id)->tokens.size(), 1U);
  run_to_end(engine);
  // Five tokens are five steps: the last one of an answer is not run.
  EXPECT_EQ(model.order, "EECECECECC");
  EXPECT_EQ(model.most_in_flight, 2);
  EXPECT_EQ(model.num_in_flight(), 0);
}

TEST_P(Ahead, ChunksOfAPromptFollowEachOther) {
  Engine chunks(model, {.prefill_chunk = 16});
  const RequestId id = *chunks.submit(simple(60, 2));
  run_to_end(chunks);
  EXPECT_EQ(model.order, "EECECECECC");
  EXPECT_TRUE(same_bits(finished(chunks, id).tokens, expected_answer(simple(60, 2)).tokens));
}

TEST_P(Ahead, AnswersAndAPromptShareSteps) {
  Engine mixed(model, {.prefill_chunk = 16});
  const RequestId first = *mixed.submit(simple(5, 20));
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(*mixed.step());
  const RequestId second = *mixed.submit(simple(60, 3));
  const int64_t before = mixed.metrics().decode_tokens;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(*mixed.step());
  EXPECT_EQ(mixed.metrics().decode_tokens - before, 5);
  EXPECT_GE(mixed.metrics().prefill_tokens, 5 + 60);
  run_to_end(mixed);
  EXPECT_TRUE(same_bits(finished(mixed, first).tokens, expected_answer(simple(5, 20)).tokens));
  EXPECT_TRUE(same_bits(finished(mixed, second).tokens, expected_answer(simple(60, 3)).tokens));
}

TEST_P(Ahead, AStopIdCostsAStepThatNobodySees) {
  Request request = simple(60, 50);
  request.sampling.temperature = 1;
  const Update free_run = expected_answer(request);
  request.stop_ids = {free_run.tokens[7].id};
  size_t length = 0;
  while (free_run.tokens[length].id != request.stop_ids[0]) ++length;
  const RequestId id = *engine.submit(request);
  run_to_end(engine);
  EXPECT_TRUE(same_bits(finished(engine, id).tokens, expected_answer(request).tokens));
  const auto metrics = engine.metrics();
  EXPECT_EQ(metrics.free_pages, 8);
  EXPECT_EQ(metrics.prefill_tokens, 60);
  EXPECT_EQ(metrics.decode_tokens, static_cast<int64_t>(length));
  EXPECT_EQ(metrics.steps, static_cast<int64_t>(length) + 1);
  EXPECT_EQ(model.runs, metrics.steps + 1);  // the one in vain
  EXPECT_EQ(model.num_in_flight(), 0);
}

TEST_P(Ahead, MetricsAreThoseOfTheSynchronousEngine) {
  std::mt19937_64 rng(5);
  FakeAsyncModel large(kVocab, 200, 1024);
  FakeModel plain(kVocab, 200, 1024);
  Engine ahead(large, {.prefill_chunk = 32}, letter_streams()), behind(plain, {.prefill_chunk = 32}, letter_streams());
  for (int i = 0; i < 40; ++i) {
    const Request request = random_request(rng, 150, 60);
    (void)*ahead.submit(request);
    (void)*behind.submit(request);
  }
  run_to_end(ahead);
  run_to_end(behind);
  EXPECT_EQ(ahead.metrics().prefill_tokens, behind.metrics().prefill_tokens);
  EXPECT_EQ(ahead.metrics().decode_tokens, behind.metrics().decode_tokens);
  EXPECT_EQ(ahead.metrics().free_pages, 200);
}

TEST_P(Ahead, WhatTheHostMustChooseIsRead) {
  Request penalised = simple(5, 4), scored = simple(5, 4), prompt_scored = simple(5, 1);
  penalised.sampling.repetition_penalty = 1.5F;
  scored.logprobs = 2;
  prompt_scored.prompt_logprobs = 0;
  for (const Request& request : {penalised, scored, prompt_scored}) {
    const RequestId id = *engine.submit(request);
    run_to_end(engine);
    const Update got = finished(engine, id), expected = expected_answer(request);
    EXPECT_TRUE(same_bits(got.tokens, expected.tokens));
    EXPECT_TRUE(same_bits(got.prompt_tokens, expected.prompt_tokens));
  }
  EXPECT_EQ(model.order, std::string("RRRR") + "RRRR" + "R");
}

// One such request beside others: its steps alone are read, those before and behind overlap.
TEST_P(Ahead, StepsOverlapAgainWhenNobodyIsReadAnyMore) {
  const RequestId greedy = *engine.submit(simple(5, 12));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(*engine.step());
  EXPECT_EQ(model.order, "EECECEC");
  Request scored = simple(70, 2);
  scored.logprobs = 0;
  const RequestId read = *engine.submit(scored);
  run_to_end(engine);
  EXPECT_EQ(model.order, "EECECECCRREECECECECECC");
  EXPECT_TRUE(same_bits(finished(engine, greedy).tokens, expected_answer(simple(5, 12)).tokens));
  EXPECT_TRUE(same_bits(finished(engine, read).tokens, expected_answer(scored).tokens));
}

TEST_P(Ahead, AStepThatTheModelDoesNotTakeIsRun) {
  model.most_tokens = 4;
  const RequestId id = *engine.submit(simple(5, 3));
  run_to_end(engine);
  EXPECT_EQ(model.order, "REECC");
  EXPECT_TRUE(same_bits(finished(engine, id).tokens, expected_answer(simple(5, 3)).tokens));
  model.most_tokens = 100;
  model.most_sequences = 1;
  model.order.clear();
  (void)*engine.submit(simple(5, 2));
  (void)*engine.submit(simple(5, 2));
  run_to_end(engine);
  EXPECT_EQ(model.order, "RR");
  model.most_sequences = 2;
  model.can_draw = false;
  model.order.clear();
  Request drawn = simple(5, 2);
  (void)*engine.submit(drawn);
  run_to_end(engine);
  drawn.sampling.temperature = 1;
  const RequestId by_host = *engine.submit(drawn);
  run_to_end(engine);
  EXPECT_EQ(model.order, "EECCRR");
  EXPECT_TRUE(same_bits(finished(engine, by_host).tokens, expected_answer(drawn).tokens));
  EXPECT_EQ(model.broken_rule, "");
}

// A model that takes its offer back, as while somebody observes it.
TEST_P(Ahead, AModelMayStopToBeAsynchronous) {
  const RequestId id = *engine.submit(simple(5, 6));
  EXPECT_TRUE(*engine.step());
  model.is_async = false;
  run_to_end(engine);
  EXPECT_EQ(model.order, "EECCRRRR");
  EXPECT_TRUE(same_bits(finished(engine, id).tokens, expected_answer(simple(5, 6)).tokens));
}

TEST_P(Ahead, TheOptionTurnsItOff) {
  Engine behind(model, {.run_ahead = false});
  const RequestId id = *behind.submit(simple(5, 3));
  run_to_end(behind);
  EXPECT_EQ(model.order, "RRR");
  EXPECT_TRUE(same_bits(finished(behind, id).tokens, expected_answer(simple(5, 3)).tokens));
}

TEST_P(Ahead, CancelTakesNothingBackAndAddsNothing) {
  const RequestId id = *engine.submit(simple(5, 100)), other = *engine.submit(simple(5, 6));
  EXPECT_TRUE(*engine.step());
  EXPECT_EQ(engine.poll(id)->tokens.size(), 1U);
  engine.cancel(id);
  EXPECT_TRUE(*engine.step());
  const Update cut = finished(engine, id);
  EXPECT_EQ(cut.finish, FinishReason::kCancelled);
  EXPECT_TRUE(cut.tokens.empty());  // the one on its way is not given out
  EXPECT_EQ(engine.metrics().free_pages, 7);
  run_to_end(engine);
  EXPECT_TRUE(same_bits(finished(engine, other).tokens, expected_answer(simple(5, 6)).tokens));
  EXPECT_EQ(engine.metrics().free_pages, 8);
}

TEST_P(Ahead, AnEndLeavesNoStepInFlight) {
  const RequestId id = *engine.submit(simple(5, 100));
  EXPECT_TRUE(*engine.step());
  engine.cancel(id);
  EXPECT_TRUE(*engine.step());
  EXPECT_EQ(model.num_in_flight(), 0);
  EXPECT_FALSE(*engine.step());
}

TEST_P(Ahead, AnEngineThatGoesLeavesNoStepInFlight) {
  {
    Engine gone(model, {});
    (void)*gone.submit(simple(5, 100));
    EXPECT_TRUE(*gone.step());
    EXPECT_EQ(model.num_in_flight(), 1);
  }
  EXPECT_EQ(model.num_in_flight(), 0);
  const RequestId id = *engine.submit(simple(5, 4));
  run_to_end(engine);
  EXPECT_TRUE(same_bits(finished(engine, id).tokens, expected_answer(simple(5, 4)).tokens));
}

// An error of a step, told when it is enqueued or when it is read.
class AheadErrors : public Ahead {
 protected:
  void expect_failed(Engine& two, const std::vector<RequestId>& ids, size_t tokens, const std::string& words) {
    for (const RequestId id : ids) {
      const Update update = finished(two, id);
      EXPECT_EQ(update.finish, FinishReason::kError);
      ASSERT_TRUE(update.error.has_value());
      EXPECT_THAT(update.error->message, HasSubstr(words));
      EXPECT_EQ(update.tokens.size(), tokens);
      EXPECT_TRUE(same_bits(update.tokens, [&] {
        auto head = expected_answer(simple(70, 4)).tokens;
        head.resize(tokens);
        return head;
      }()));
    }
    EXPECT_EQ(two.metrics().free_pages, 8);
    EXPECT_EQ(model.num_in_flight(), 0);
  }
  void expect_usable(Engine& two, RequestId waiting) {
    run_to_end(two);
    EXPECT_TRUE(same_bits(finished(two, waiting).tokens, expected_answer(simple(70, 4)).tokens));
    const RequestId later = *two.submit(simple(70, 4));
    run_to_end(two);
    EXPECT_TRUE(same_bits(finished(two, later).tokens, expected_answer(simple(70, 4)).tokens));
    EXPECT_EQ(two.metrics().free_pages, 8);
    EXPECT_EQ(model.broken_rule, "");
  }
  EngineOptions options{.max_sequences = 2, .prefix_cache = true};
  std::vector<RequestId> submit_two(Engine& two) {
    std::vector<RequestId> ids;
    for (int i = 0; i < 2; ++i) ids.push_back(*two.submit(simple(70, 4)));
    return ids;
  }
};
INSTANTIATE_TEST_SUITE_P(Both, AheadErrors, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Eager" : "Lazy"; });

TEST_P(AheadErrors, ToldWhenAStepIsRead) {
  Engine two(model, options);
  const auto ids = submit_two(two);
  const RequestId waiting = *two.submit(simple(70, 4));
  model.fail_at = 2;
  EXPECT_TRUE(*two.step());
  const auto failed = two.step();
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message, "failed on purpose");
  expect_failed(two, ids, 1, "failed on purpose");
  expect_usable(two, waiting);
}

TEST_P(AheadErrors, ToldWhenAStepIsEnqueued) {
  Engine two(model, options);
  const auto ids = submit_two(two);
  const RequestId waiting = *two.submit(simple(70, 4));
  model.fail_enqueue_at = 3;
  EXPECT_TRUE(*two.step());
  const auto failed = two.step();  // the third step is refused; the second brings its token
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message, "refused on purpose");
  expect_failed(two, ids, 2, "refused on purpose");
  expect_usable(two, waiting);
}

TEST_P(AheadErrors, ThrownWhenAStepIsEnqueued) {
  Engine two(model, options);
  const auto ids = submit_two(two);
  const RequestId waiting = *two.submit(simple(70, 4));
  model.throw_enqueue_at = 3;
  EXPECT_TRUE(*two.step());
  EXPECT_THROW((void)two.step(), std::runtime_error);
  expect_failed(two, ids, 1, "thrown on purpose");
  expect_usable(two, waiting);
}

TEST_P(AheadErrors, ThrownWhenAStepIsComputed) {
  Engine two(model, options);
  const auto ids = submit_two(two);
  const RequestId waiting = *two.submit(simple(70, 4));
  EXPECT_TRUE(*two.step());
  model.throw_at = model.runs + 1;
  EXPECT_THROW((void)two.step(), std::runtime_error);
  expect_failed(two, ids, 1, "thrown on purpose");
  expect_usable(two, waiting);
}

TEST_P(AheadErrors, ARowWithoutNumbersEndsItsOwnRequest) {
  model.nan_id = 60;
  Request poisoned = simple(10, 5), sampled = simple(10, 5), clean = simple(10, 5);
  poisoned.prompt.back() = sampled.prompt.back() = 60;
  sampled.sampling.temperature = 1;
  clean.sampling.temperature = 0.5F;
  const RequestId bad = *engine.submit(poisoned), drawn = *engine.submit(sampled), good = *engine.submit(clean);
  run_to_end(engine);
  for (const RequestId id : {bad, drawn}) {
    const Update update = finished(engine, id);
    EXPECT_EQ(update.finish, FinishReason::kError);
    ASSERT_TRUE(update.error.has_value());
    EXPECT_EQ(update.error->code, ErrorCode::kInvalidData);
    EXPECT_THAT(update.error->message, HasSubstr("before token 0 of the answer: the model's logits hold NaN"));
    EXPECT_TRUE(update.tokens.empty());
  }
  EXPECT_TRUE(same_bits(finished(engine, good).tokens, expected_answer(clean).tokens));
  EXPECT_EQ(engine.metrics().free_pages, 8);
  EXPECT_EQ(model.order.find('R'), std::string::npos);
}

TEST_P(AheadErrors, PagesOfAFailedStepAreNotReused) {
  expect_failed_pages_are_not_reused(model, options);
}

// What a stop id made worthless lies behind the pages that are kept.
TEST_P(Ahead, PagesOfAStoppedAnswerAreReused) {
  Engine cached(model, {.prefix_cache = true});
  Request request = simple(120, 50);
  request.sampling.temperature = 1;
  const Update free_run = expected_answer(request);
  // The stop id is drawn where a page begins: the token in vain is the first of the next page.
  request.stop_ids = {free_run.tokens[8].id};
  ASSERT_EQ(std::count_if(free_run.tokens.begin(), free_run.tokens.begin() + 8,
                          [&](const TokenOutput& token) { return token.id == request.stop_ids[0]; }),
            0);
  const RequestId id = *cached.submit(request);
  run_to_end(cached);
  EXPECT_EQ(finished(cached, id).tokens.size(), 8U);
  Request next = request;
  for (size_t i = 0; i < 8; ++i) next.prompt.push_back(free_run.tokens[i].id);
  next.prompt.push_back(3);
  const RequestId second = *cached.submit(next);
  run_to_end(cached);
  const Update update = finished(cached, second);
  EXPECT_EQ(update.cached_prompt_tokens, 128);
  EXPECT_TRUE(same_bits(update.tokens, expected_answer(next).tokens));
}

}  // namespace
}  // namespace quadrille::engine
