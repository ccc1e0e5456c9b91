// SPDX-License-Identifier: Apache-2.0
// The engine's surface: what submit refuses and with which words, what poll and cancel promise, what an error of the
// model does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "expected_answer.h"

namespace quadrille::engine {
namespace {

using namespace testing;
using ::testing::HasSubstr;

class Surface : public ::testing::Test {
 protected:
  void expect_refused(const Request& request, ErrorCode code, const std::string& words) {
    const auto id = engine.submit(request);
    ASSERT_FALSE(id.ok()) << words;
    EXPECT_EQ(id.error().code, code) << id.error().message;
    EXPECT_THAT(id.error().message, HasSubstr(words));
    EXPECT_EQ(engine.metrics().waiting, 0);
  }
  template <typename Change>
  void expect_refused_sampling(Change change, const std::string& words) {
    Request request = simple();
    change(request.sampling);
    expect_refused(request, ErrorCode::kInvalidArgument, words);
  }
  FakeModel model{kVocab, 8, 1024};
  Engine engine{model, {}};
};

TEST_F(Surface, RefusesLengthsThatCanNeverFit) {
  expect_refused(simple(0), ErrorCode::kInvalidArgument, "empty");
  expect_refused(simple(5, -1), ErrorCode::kInvalidArgument, "max_tokens is -1");
  expect_refused(simple(1000000), ErrorCode::kCapacity, "prompt of 1000000 tokens");
  expect_refused(simple(1000000), ErrorCode::kCapacity, "1024 positions");
  expect_refused(simple(1000, 25), ErrorCode::kCapacity, "at most 24 tokens");
  expect_refused(simple(5, std::numeric_limits<int64_t>::max()), ErrorCode::kCapacity, "1019");
  // The cache: 8 pages hold 512 positions, and the last token of an answer takes none.
  expect_refused(simple(500, 14), ErrorCode::kCapacity, "need 9 pages of 64 positions");
  expect_refused(simple(513, 0), ErrorCode::kCapacity, "has 8");
  for (const auto& request : {simple(500, 13), simple(512, 1), simple(512, 0), simple(1, 512)}) {
    const auto id = engine.submit(request);
    ASSERT_TRUE(id.ok()) << id.error().message;
    run_to_end(engine);
    EXPECT_EQ(finished(engine, *id).finish, FinishReason::kLength);
  }
}

TEST_F(Surface, RefusesValuesWithoutMeaning) {
  Request request = simple();
  request.prompt[3] = kVocab;
  expect_refused(request, ErrorCode::kInvalidArgument, "prompt token 3 is id 61");
  request.prompt[3] = -1;
  expect_refused(request, ErrorCode::kInvalidArgument, "0 to 60");
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const float bad : {-0.1F, nan, inf}) {
    expect_refused_sampling([&](auto& s) { s.temperature = bad; }, "temperature");
  }
  for (const float bad : {-0.1F, 0.0F, 1.1F, nan}) expect_refused_sampling([&](auto& s) { s.top_p = bad; }, "top_p");
  for (const float bad : {-0.1F, 1.1F, nan}) expect_refused_sampling([&](auto& s) { s.min_p = bad; }, "min_p");
  for (const float bad : {-1.0F, 0.0F, nan, inf}) {
    expect_refused_sampling([&](auto& s) { s.repetition_penalty = bad; }, "repetition_penalty");
  }
  expect_refused_sampling([](auto& s) { s.top_k = -1; }, "top_k is -1");
  request = simple();
  request.logprobs = -2;
  expect_refused(request, ErrorCode::kInvalidArgument, "logprobs is -2");
  request.logprobs = kVocab + 1;
  expect_refused(request, ErrorCode::kInvalidArgument, "61 (the vocabulary)");
  request = simple();
  request.prompt_logprobs = kVocab + 1;
  expect_refused(request, ErrorCode::kInvalidArgument, "prompt_logprobs");
  request = simple();
  request.prompt_logits = [](std::span<const float>) {};
  expect_refused(request, ErrorCode::kInvalidArgument, "prompt_logits goes with max_tokens 0");
  request = simple();
  request.stop_strings = {"x"};
  expect_refused(request, ErrorCode::kUnsupported, "tokenizer");
}

TEST(SurfaceWithText, RefusesStopStringsThatCutCharacters) {
  FakeModel model(kVocab, 8, 1024);
  Engine engine(model, {}, letter_streams());
  Request request = simple();
  request.stop_strings = {"ok", ""};
  EXPECT_THAT(engine.submit(request).error().message, HasSubstr("stop string 1 is empty"));
  request.stop_strings = {"\x82\xAC"};
  EXPECT_THAT(engine.submit(request).error().message, HasSubstr("inside a UTF-8 character"));
}

TEST_F(Surface, PollKnowsARequestUntilItsEndWasPolled) {
  EXPECT_EQ(engine.poll(77).error().code, ErrorCode::kNotFound);
  EXPECT_FALSE(*engine.step());
  const RequestId id = *engine.submit(simple(5, 3));
  EXPECT_EQ(engine.poll(id)->finish, FinishReason::kNone);
  for (int token = 0; token < 3; ++token) {
    EXPECT_TRUE(*engine.step());
    const Update update = *engine.poll(id);
    EXPECT_EQ(update.id, id);
    EXPECT_EQ(update.tokens.size(), 1U);
    EXPECT_EQ(update.finish, token == 2 ? FinishReason::kLength : FinishReason::kNone);
  }
  EXPECT_FALSE(*engine.step());
  EXPECT_EQ(engine.poll(id).error().code, ErrorCode::kNotFound);
}

TEST_F(Surface, CancelEndsARequestWhereverItIs) {
  EngineOptions options;
  options.max_sequences = 1;
  Engine one(model, options);
  const RequestId running = *one.submit(simple(5, 100)), waiting = *one.submit(simple(5, 100));
  const RequestId fresh_end = *one.submit(simple(5, 100)), last = *one.submit(simple(5, 2));
  EXPECT_TRUE(*one.step());
  one.cancel(waiting);
  one.cancel(running);
  one.cancel(running);  // twice is once
  one.cancel(12345);
  EXPECT_TRUE(*one.step());
  EXPECT_EQ(finished(one, waiting).finish, FinishReason::kCancelled);
  const Update cut = finished(one, running);
  EXPECT_EQ(cut.finish, FinishReason::kCancelled);
  EXPECT_EQ(cut.tokens.size(), 1U);
  one.cancel(fresh_end);
  run_to_end(one);
  EXPECT_EQ(finished(one, fresh_end).finish, FinishReason::kCancelled);
  EXPECT_EQ(finished(one, last).finish, FinishReason::kLength);
  one.cancel(last);
  EXPECT_FALSE(*one.step());
  EXPECT_EQ(one.metrics().free_pages, 8);
}

TEST_F(Surface, CancelAfterTheEndKeepsTheEnd) {
  const RequestId id = *engine.submit(simple(5, 1));
  run_to_end(engine);
  engine.cancel(id);
  run_to_end(engine);
  EXPECT_EQ(finished(engine, id).finish, FinishReason::kLength);
}

TEST_F(Surface, AFullQueueRefuses) {
  EngineOptions options;
  options.max_queued = 3;
  options.max_sequences = 1;
  Engine small(model, options);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(small.submit(simple()).ok());
  const auto refused = small.submit(simple());
  EXPECT_EQ(refused.error().code, ErrorCode::kCapacity);
  EXPECT_THAT(refused.error().message, HasSubstr("3 requests wait"));
  EXPECT_TRUE(*small.step());  // one runs, two wait
  EXPECT_TRUE(small.submit(simple()).ok());
  EXPECT_FALSE(small.submit(simple()).ok());
  run_to_end(small);
}

TEST_F(Surface, MoreRequestsThanTheCacheHoldsWait) {
  std::vector<RequestId> ids;
  for (int i = 0; i < 50; ++i) ids.push_back(*engine.submit(simple(300, 100)));  // 7 of 8 pages each
  EXPECT_TRUE(*engine.step());
  EXPECT_EQ(engine.metrics().running, 1);
  EXPECT_EQ(engine.metrics().waiting, 49);
  run_to_end(engine);
  const Update expected = expected_answer(simple(300, 100));
  for (const RequestId id : ids) EXPECT_TRUE(same_bits(finished(engine, id).tokens, expected.tokens));
}

TEST_F(Surface, NoAnswerIsWantedWithMaxTokensZero) {
  Request request = simple(100, 0);
  request.prompt_logprobs = 1;
  const RequestId scored = *engine.submit(request), silent = *engine.submit(simple(100, 0));
  Request single = simple(1, 0);
  single.prompt_logprobs = 1;
  const RequestId short_one = *engine.submit(single);
  run_to_end(engine);
  const Update update = finished(engine, scored);
  EXPECT_EQ(update.finish, FinishReason::kLength);
  EXPECT_TRUE(update.tokens.empty());
  EXPECT_TRUE(same_bits(update.prompt_tokens, expected_answer(request).prompt_tokens));
  EXPECT_EQ(finished(engine, silent).finish, FinishReason::kLength);
  EXPECT_EQ(finished(engine, short_one).finish, FinishReason::kLength);
  EXPECT_EQ(model.largest_rows, 99);  // nothing but the log-probabilities was asked of the model
}

TEST_F(Surface, AnErrorOfTheModelEndsWhatRunsAndNothingElse) {
  EngineOptions options;
  options.max_sequences = 2;
  options.prefix_cache = true;
  Engine two(model, options);
  std::vector<RequestId> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(*two.submit(simple(70, 4)));
  model.fail_at = 2;
  EXPECT_TRUE(*two.step());
  const auto failed = two.step();
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message, "failed on purpose");
  for (int i = 0; i < 2; ++i) {
    const Update update = finished(two, ids[static_cast<size_t>(i)]);
    EXPECT_EQ(update.finish, FinishReason::kError);
    ASSERT_TRUE(update.error.has_value());
    EXPECT_EQ(update.error->message, "failed on purpose");
    EXPECT_EQ(update.tokens.size(), 1U);
  }
  EXPECT_EQ(two.metrics().free_pages, 8);
  run_to_end(two);
  EXPECT_TRUE(same_bits(finished(two, ids[2]).tokens, expected_answer(simple(70, 4)).tokens));
  const RequestId later = *two.submit(simple(70, 4));
  run_to_end(two);
  EXPECT_TRUE(same_bits(finished(two, later).tokens, expected_answer(simple(70, 4)).tokens));
}

TEST_F(Surface, AnExceptionOfTheModelLeavesTheEngineUsable) {
  const RequestId id = *engine.submit(simple(70, 4));
  model.throw_at = 2;
  EXPECT_TRUE(*engine.step());
  EXPECT_THROW((void)engine.step(), std::runtime_error);
  const Update update = finished(engine, id);
  EXPECT_EQ(update.finish, FinishReason::kError);
  EXPECT_THAT(update.error->message, HasSubstr("thrown on purpose"));
  const RequestId later = *engine.submit(simple(70, 4));
  run_to_end(engine);
  EXPECT_TRUE(same_bits(finished(engine, later).tokens, expected_answer(simple(70, 4)).tokens));
}

TEST_F(Surface, LogitsThatAreNoNumbersEndTheirOwnRequest) {
  model.nan_id = 60;
  Request poisoned = simple(10, 5), scored = simple(10, 5), sampled = simple(10, 5);
  poisoned.prompt.back() = 60;
  scored.prompt[4] = 60;
  scored.prompt_logprobs = 0;
  sampled.prompt.back() = 60;
  sampled.sampling.temperature = 1;
  Request clean = simple(10, 5);
  clean.sampling.temperature = 0.5F;
  std::vector<RequestId> bad;
  for (const auto& request : {poisoned, scored, sampled}) bad.push_back(*engine.submit(request));
  const RequestId good = *engine.submit(clean);
  run_to_end(engine);
  for (const RequestId id : bad) {
    const Update update = finished(engine, id);
    EXPECT_EQ(update.finish, FinishReason::kError);
    ASSERT_TRUE(update.error.has_value());
    EXPECT_EQ(update.error->code, ErrorCode::kInvalidData);
    EXPECT_THAT(update.error->message, HasSubstr("logit of id 30 is nan"));
    EXPECT_TRUE(update.tokens.empty());
  }
  EXPECT_TRUE(same_bits(finished(engine, good).tokens, expected_answer(clean).tokens));
  EXPECT_EQ(engine.metrics().free_pages, 8);
}

TEST_F(Surface, PagesOfAFailedStepAreNotReused) {
  EngineOptions options;
  options.prefix_cache = true;
  expect_failed_pages_are_not_reused(model, options);
}

TEST_F(Surface, StopIdsAreLeftOut) {
  Request request = simple(20, 50);
  request.sampling.temperature = 1;
  const Update free_run = expected_answer(request);
  request.stop_ids = {free_run.tokens[7].id};
  size_t first = 0;
  while (free_run.tokens[first].id != request.stop_ids[0]) ++first;
  const RequestId id = *engine.submit(request);
  request.ignore_stop_ids = true;
  const RequestId ignoring = *engine.submit(request);
  run_to_end(engine);
  const Update stopped = finished(engine, id);
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_EQ(stopped.tokens.size(), first);
  const Update ignored = finished(engine, ignoring);
  EXPECT_EQ(ignored.finish, FinishReason::kLength);
  EXPECT_TRUE(same_bits(ignored.tokens, free_run.tokens));
}

TEST_F(Surface, MetricsCountTokensAndPages) {
  (void)*engine.submit(simple(100, 10));
  run_to_end(engine);
  const EngineMetrics m = engine.metrics();
  EXPECT_EQ(m.prefill_tokens, 100);
  EXPECT_EQ(m.decode_tokens, 9);  // the first token of the answer comes out of the prompt
  EXPECT_EQ(m.steps, 10);
  EXPECT_EQ(m.total_pages, 8);
  EXPECT_GT(m.step_seconds, 0);
  EXPECT_NEAR(m.prefill_seconds + m.decode_seconds, m.step_seconds, 1e-9 * (1 + m.step_seconds));
}

TEST_F(Surface, OptionsBelowOneCountAsOne) {
  Engine least(
      model, {.max_batch_tokens = 0, .max_sequences = -1, .prefill_chunk = 0, .max_queued = 0, .max_logit_bytes = -5});
  const RequestId id = *least.submit(simple(10, 3));
  run_to_end(least);
  EXPECT_TRUE(same_bits(finished(least, id).tokens, expected_answer(simple(10, 3)).tokens));
}

TEST_F(Surface, WaitingEndsAtOnceWhereThereIsWork) {
  const auto start = std::chrono::steady_clock::now();
  engine.stop_waiting();
  engine.wait_for_work(600);  // the stop came before: not lost
  (void)*engine.submit(simple());
  engine.wait_for_work(600);
  engine.wait_for_update(99, 600);  // nothing to wait for
  run_to_end(engine);
  engine.wait_for_work(0.001);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(300));
}

}  // namespace
}  // namespace quadrille::engine
