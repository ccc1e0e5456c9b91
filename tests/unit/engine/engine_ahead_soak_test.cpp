// SPDX-License-Identifier: Apache-2.0
// Thousands of random requests through engines that run ahead of the host: arrivals and cancellations between steps,
// caches too small for all, prefixes shared, steps that the host must read in between, steps that fail. Every answer is
// compared bit for bit with that of no engine at all, every cut one with its beginning.
#include <gtest/gtest.h>

#include <map>

#include "expected_answer.h"
#include "fake_async_model.h"

namespace quadrille::engine {
namespace {

using namespace testing;

struct Outcome {
  int64_t compared = 0, cut = 0, failed = 0, preemptions = 0, hits = 0, enqueued = 0, run = 0, wasted = 0, drawn = 0;
};

class Round {
 public:
  explicit Round(uint64_t seed) : rng_(seed), pages_(4 + below(20)), model_(kVocab, pages_, 4096) {
    options_.max_batch_tokens = 1 + below(100);
    options_.max_sequences = 1 + below(20);
    options_.prefill_chunk = 1 + below(80);
    options_.prefix_cache = below(2) == 0;
    options_.max_logit_bytes = kVocab * 4 * (1 + below(40));
    longest_answer_ = below(2) == 0 ? std::min<int64_t>(300, pages_ * 64 - 64) : 60;
    longest_prompt_ = 1 + below(std::min<int64_t>(250, pages_ * 64 - longest_answer_));
    // Of ten requests, those that the host must read.
    read_of_ten_ = std::array{0, 0, 1, 10}[static_cast<size_t>(below(4))];
    model_.eager = below(2) == 0;
    if (below(4) == 0) model_.most_tokens = 1 + below(60);
    if (below(4) == 0) model_.most_sequences = 1 + below(8);
    if (below(8) == 0) model_.can_draw = false;
    if (below(6) == 0) model_.fail_at = 5 + below(200);
    if (below(6) == 0) model_.fail_enqueue_at = 5 + below(200);
  }

  void run(int64_t requests, Outcome& outcome) {
    Engine engine(model_, options_, letter_streams());
    int64_t submitted = 0, steps = 0;
    while (submitted < requests || !open_.empty()) {
      ASSERT_LT(++steps, 400000) << "does not end";
      for (int64_t burst = below(6); burst > 0 && submitted < requests; --burst, ++submitted) {
        Request request = any_request();
        const auto id = engine.submit(request);
        ASSERT_TRUE(id.ok()) << id.error().message;
        open_[*id].first = std::move(request);
      }
      if (below(60) == 0 && !open_.empty()) {
        auto victim = open_.begin();
        std::advance(victim, below(static_cast<int64_t>(open_.size())));
        engine.cancel(victim->first);
      }
      (void)engine.step();
      take_ended(engine, outcome);
    }
    const auto metrics = engine.metrics();
    EXPECT_EQ(metrics.free_pages, pages_);
    EXPECT_EQ(metrics.running + metrics.waiting, 0);
    EXPECT_EQ(model_.broken_rule, "");
    EXPECT_EQ(model_.num_in_flight(), 0);
    EXPECT_LE(model_.largest_step, options_.max_batch_tokens);
    outcome.preemptions += metrics.preemptions;
    outcome.hits += metrics.prefix_hits_tokens;
    outcome.enqueued += model_.enqueues;
    outcome.run += std::count(model_.order.begin(), model_.order.end(), 'R');
    outcome.wasted += model_.runs - metrics.steps;
  }

 private:
  int64_t below(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }

  Request any_request() {
    Request request = random_request(rng_, longest_prompt_, longest_answer_);
    if (longest_answer_ > 60) request.ignore_stop_ids = true;
    if (below(5) == 0) request.max_tokens = 1;
    if (below(4) == 0) request.stop_strings = {text_of(static_cast<int32_t>(below(kVocab))) + "a", "bcd"};
    if (below(10) >= read_of_ten_) {
      request.sampling.repetition_penalty = 1;
      request.logprobs = request.prompt_logprobs = -1;
    }
    return request;
  }

  void take_ended(Engine& engine, Outcome& outcome) {
    for (auto at = open_.begin(); at != open_.end();) {
      auto& [request, update] = at->second;
      if (!collect(engine, at->first, update)) {
        ++at;
        continue;
      }
      compare(request, update, outcome);
      at = open_.erase(at);
    }
  }

  void compare(const Request& request, const Update& got, Outcome& outcome) {
    const Update expected = expected_answer(request);
    if (got.finish != FinishReason::kCancelled && got.finish != FinishReason::kError) {
      EXPECT_TRUE(same_answer(got, expected));
      outcome.compared += 1;
      outcome.drawn += request.sampling.temperature > 0 ? 1 : 0;
      return;
    }
    (got.finish == FinishReason::kError ? outcome.failed : outcome.cut) += 1;
    ASSERT_LE(got.tokens.size(), expected.tokens.size());
    auto head = expected.tokens;
    head.resize(got.tokens.size());
    EXPECT_TRUE(same_bits(got.tokens, head));
    EXPECT_EQ(got.text, expected.text.substr(0, got.text.size()));
  }

  std::mt19937_64 rng_;
  int64_t pages_;
  FakeAsyncModel model_;
  EngineOptions options_;
  int64_t longest_prompt_ = 0, longest_answer_ = 0, read_of_ten_ = 0;
  std::map<RequestId, std::pair<Request, Update>> open_;
};

TEST(AheadSoak, AnswersAreThoseOfNoEngine) {
  Outcome outcome;
  constexpr uint64_t kRounds = 80;
  constexpr int64_t kRequests = 60;
  for (uint64_t seed = 1; seed <= kRounds && !HasFatalFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Round(seed).run(kRequests, outcome);
  }
  EXPECT_EQ(outcome.compared + outcome.cut + outcome.failed, static_cast<int64_t>(kRounds) * kRequests);
  // What the soak is for did happen.
  EXPECT_GT(outcome.compared, 3500);
  EXPECT_GT(outcome.drawn, 1500);
  EXPECT_GT(outcome.cut, 100);
  EXPECT_GT(outcome.failed, 20);
  EXPECT_GT(outcome.preemptions, 100);
  EXPECT_GT(outcome.hits, 2000);
  EXPECT_GT(outcome.enqueued, 10000);
  EXPECT_GT(outcome.run, 5000);
  EXPECT_GT(outcome.wasted, 100);
}

}  // namespace
}  // namespace quadrille::engine
