// SPDX-License-Identifier: Apache-2.0
// Thousands of random requests through engines of random limits, with cancellations and failing steps: everything ends,
// no page is lost, and the answers of a sample are compared bit for bit.
#include <gtest/gtest.h>

#include <map>

#include "expected_answer.h"

namespace quadrille::engine {
namespace {

using namespace testing;

struct Outcome {
  int64_t ended = 0, compared = 0, preemptions = 0, hits = 0, cancelled = 0, failed = 0;
};

struct Round {
  explicit Round(uint64_t seed) : rng(seed) {
    options.max_batch_tokens = 1 + below(100);
    options.max_sequences = 1 + below(20);
    options.prefill_chunk = 1 + below(80);
    options.prefix_cache = below(2) == 0;
    options.max_logit_bytes = kVocab * 4 * (1 + below(40));
    pages = 4 + below(20);
    // Half of the rounds have long answers, which run into each other when pages are short.
    longest_answer = below(2) == 0 ? std::min<int64_t>(400, pages * 64 - 64) : 60;
    longest_prompt = 1 + below(std::min<int64_t>(250, pages * 64 - longest_answer));
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); }

  std::mt19937_64 rng;
  EngineOptions options;
  int64_t pages = 0, longest_prompt = 0, longest_answer = 0;
};

void finish_one(const Request& request, const Update& got, bool compare, Outcome& outcome) {
  ++outcome.ended;
  if (got.finish == FinishReason::kCancelled) {
    ++outcome.cancelled;
  } else if (got.finish == FinishReason::kError) {
    ++outcome.failed;
  } else if (compare) {
    EXPECT_TRUE(same_answer(got, expected_answer(request)));
    ++outcome.compared;
  }
}

void run_round(uint64_t seed, int64_t requests, Outcome& outcome) {
  Round round(seed);
  FakeModel model(kVocab, round.pages, 4096);
  if (round.below(4) == 0) model.fail_at = 5 + round.below(200);
  Engine engine(model, round.options, letter_streams());
  std::map<RequestId, std::pair<Request, Update>> open;
  int64_t submitted = 0, steps = 0;
  while (submitted < requests || !open.empty()) {
    ASSERT_LT(++steps, 400000) << "seed " << seed << " does not end";
    for (int64_t burst = round.below(6); burst > 0 && submitted < requests; --burst) {
      Request request = random_request(round.rng, round.longest_prompt, round.longest_answer);
      if (round.longest_answer > 60) request.ignore_stop_ids = true;
      const auto id = engine.submit(request);
      ASSERT_TRUE(id.ok()) << id.error().message;
      open[*id].first = std::move(request);
      ++submitted;
    }
    if (round.below(60) == 0 && !open.empty()) {
      auto victim = open.begin();
      std::advance(victim, round.below(static_cast<int64_t>(open.size())));
      engine.cancel(victim->first);
    }
    (void)engine.step();
    for (auto at = open.begin(); at != open.end();) {
      auto& [request, update] = at->second;
      if (collect(engine, at->first, update)) {
        finish_one(request, update, at->first % 3 == 0, outcome);
        at = open.erase(at);
      } else {
        ++at;
      }
    }
  }
  const auto metrics = engine.metrics();
  EXPECT_EQ(metrics.free_pages, round.pages) << "seed " << seed;
  EXPECT_EQ(metrics.running + metrics.waiting, 0);
  EXPECT_EQ(model.broken_rule, "") << "seed " << seed;
  EXPECT_LE(model.largest_step, round.options.max_batch_tokens);
  outcome.preemptions += metrics.preemptions;
  outcome.hits += metrics.prefix_hits_tokens;
}

TEST(Soak, EverythingEndsAndNoPageIsLost) {
  Outcome outcome;
  constexpr int64_t kRounds = 40, kRequests = 60;
  for (uint64_t seed = 1; seed <= kRounds && !HasFatalFailure(); ++seed) run_round(seed, kRequests, outcome);
  EXPECT_EQ(outcome.ended, kRounds * kRequests);
  // What the soak is for did happen.
  EXPECT_GT(outcome.compared, 500);
  EXPECT_GT(outcome.preemptions, 100);
  EXPECT_GT(outcome.hits, 1000);
  EXPECT_GT(outcome.cancelled, 50);
  EXPECT_GT(outcome.failed, 5);
}

}  // namespace
}  // namespace quadrille::engine
