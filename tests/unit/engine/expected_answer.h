// SPDX-License-Identifier: Apache-2.0
// What a request must answer, computed without engine, batch and pages: one row of logits after another from the plain
// history. And the tools that the engine's tests share: random requests, collected updates, bitwise comparison.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "fake_model.h"

namespace quadrille::engine::testing {

inline constexpr int64_t kVocab = 61;

// Text of an id: one or two letters, so that stop strings lie across tokens.
inline std::string text_of(int32_t id) {
  const std::string letters = "abcde";
  const auto n = static_cast<size_t>(id);
  return n % 3 == 0 ? letters.substr(n % 5, 1) : letters.substr(n % 5, 1) + letters.substr((n / 5) % 5, 1);
}

class LetterStream : public TextStream {
 public:
  std::string push(int32_t id) override { return text_of(id); }
  std::string finish() override { return ""; }
};
inline TextStreamFactory letter_streams() {
  return [] { return std::make_unique<LetterStream>(); };
}

// Cuts `text` before the stop string that is complete first. True when there is one.
inline bool cut_at_stop(std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const auto& stop : stops) {
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest == 0) continue;
    text.resize(end - longest);
    return true;
  }
  return false;
}

inline Update expected_answer(const Request& request, int64_t vocab = kVocab) {
  Update expected;
  std::vector<int32_t> tokens = request.prompt;
  for (size_t i = 1; i < tokens.size() && request.prompt_logprobs >= 0; ++i) {
    const auto logits = logits_after(std::span(tokens).first(i), vocab);
    expected.prompt_tokens.push_back(*score_token(logits, tokens[i], request.prompt_logprobs));
  }
  Sampler sampler;
  std::string all_text;
  expected.finish = FinishReason::kLength;
  while (static_cast<int64_t>(expected.tokens.size()) < request.max_tokens) {
    const auto logits = logits_after(tokens, vocab);
    std::vector<int32_t> seen = tokens;
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    const int32_t id = *sampler.sample(logits, request.sampling, expected.tokens.size(), seen);
    const bool is_stop = std::count(request.stop_ids.begin(), request.stop_ids.end(), id) > 0;
    if (is_stop && !request.ignore_stop_ids) {
      expected.finish = FinishReason::kStop;
      break;
    }
    expected.tokens.push_back(*score_token(logits, id, request.logprobs));
    tokens.push_back(id);
    all_text += text_of(id);
    if (cut_at_stop(all_text, request.stop_strings)) {
      expected.finish = FinishReason::kStop;
      break;
    }
  }
  expected.text = all_text;
  return expected;
}

// A request with prompts that share beginnings, so that the prefix cache has something to find.
inline Request random_request(std::mt19937_64& rng, int64_t longest_prompt, int64_t longest_answer) {
  const auto below = [&](int64_t n) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(n)); };
  Request request;
  const int64_t length = 1 + below(longest_prompt);
  const auto family = static_cast<uint64_t>(below(3)), shared = static_cast<uint64_t>(below(length + 1));
  for (int64_t i = 0; i < length; ++i) {
    const auto index = static_cast<uint64_t>(i);
    request.prompt.push_back(static_cast<int32_t>((index < shared ? mix(family, index) : rng()) % kVocab));
  }
  request.max_tokens = below(longest_answer + 1);
  request.sampling.temperature = std::array{0.0F, 0.7F, 1.3F}[static_cast<size_t>(below(3))];
  if (below(3) == 0) request.sampling.top_k = static_cast<int32_t>(1 + below(20));
  if (below(3) == 0) request.sampling.top_p = 0.8F;
  if (below(3) == 0) request.sampling.min_p = 0.05F;
  if (below(3) == 0) request.sampling.repetition_penalty = 1.2F;
  request.sampling.seed = rng();
  if (below(2) == 0) request.logprobs = static_cast<int32_t>(below(4));
  if (below(3) == 0) request.prompt_logprobs = static_cast<int32_t>(below(4));
  if (below(2) == 0) request.stop_ids = {static_cast<int32_t>(below(kVocab)), static_cast<int32_t>(below(kVocab))};
  request.ignore_stop_ids = below(4) == 0;
  return request;
}

inline bool same_bits(const TokenOutput& a, const TokenOutput& b) {
  if (a.id != b.id || std::bit_cast<uint32_t>(a.logprob) != std::bit_cast<uint32_t>(b.logprob)) return false;
  return std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(), [](const auto& x, const auto& y) {
    return x.id == y.id && std::bit_cast<uint32_t>(x.logprob) == std::bit_cast<uint32_t>(y.logprob);
  });
}

inline bool same_bits(const std::vector<TokenOutput>& a, const std::vector<TokenOutput>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return same_bits(x, y); });
}

inline ::testing::AssertionResult same_answer(const Update& got, const Update& expected) {
  const auto fail = [](const std::string& what) { return ::testing::AssertionFailure() << what; };
  if (got.finish != expected.finish) {
    return fail(std::string("finish ") + finish_reason_name(got.finish) + ", expected " +
                finish_reason_name(expected.finish));
  }
  if (!same_bits(got.tokens, expected.tokens)) {
    return fail(fmt::format("answers differ ({} and {} tokens)", got.tokens.size(), expected.tokens.size()));
  }
  if (!same_bits(got.prompt_tokens, expected.prompt_tokens)) return fail("log-probabilities of the prompt differ");
  if (got.text != expected.text) return fail("text '" + got.text + "', expected '" + expected.text + "'");
  return ::testing::AssertionSuccess();
}

// Adds what poll() says to `to`; true when the request has ended.
inline bool collect(Engine& engine, RequestId id, Update& to) {
  auto update = engine.poll(id);
  if (!update) return true;
  to.tokens.insert(to.tokens.end(), update->tokens.begin(), update->tokens.end());
  to.prompt_tokens.insert(to.prompt_tokens.end(), update->prompt_tokens.begin(), update->prompt_tokens.end());
  to.text += update->text;
  to.finish = update->finish;
  to.error = update->error;
  to.cached_prompt_tokens = update->cached_prompt_tokens;
  return to.finish != FinishReason::kNone;
}

// Steps until nothing is left to do, with a bound far above what any test needs.
inline void run_to_end(Engine& engine) {
  for (int64_t steps = 0; steps < 200000; ++steps) {
    const auto worked = engine.step();
    if (worked.ok() && !*worked) return;
  }
  FAIL() << "the engine does not come to an end";
}

inline Update finished(Engine& engine, RequestId id) {
  Update all;
  EXPECT_TRUE(collect(engine, id, all)) << "request " << id << " has not ended";
  return all;
}

inline Request simple(int64_t prompt = 5, int64_t max_tokens = 4) {
  Request request;
  for (int64_t i = 0; i < prompt; ++i) request.prompt.push_back(static_cast<int32_t>(i % kVocab));
  request.max_tokens = max_tokens;
  return request;
}

// A request whose last row is no number, then the same request over a model that is well: its pages are computed anew.
// `options`: with the prefix cache.
inline void expect_failed_pages_are_not_reused(FakeModel& model, const EngineOptions& options) {
  Engine cached(model, options);
  Request request = simple(130, 1);
  request.prompt.back() = 60;
  model.nan_id = 60;
  const RequestId bad = *cached.submit(request);
  run_to_end(cached);
  EXPECT_EQ(finished(cached, bad).finish, FinishReason::kError);
  model.nan_id = -1;
  const RequestId good = *cached.submit(request);
  run_to_end(cached);
  const Update update = finished(cached, good);
  EXPECT_EQ(update.cached_prompt_tokens, 0);
  EXPECT_TRUE(same_bits(update.tokens, expected_answer(request).tokens));
}

}  // namespace quadrille::engine::testing
