// SPDX-License-Identifier: Apache-2.0
// The engine over a real model: ids and log-probabilities of an answer are bitwise the same alone, in batches of 2, 7
// and 64, with prompt chunks of 1, 16 and 512, preempted and resumed, and with prefix reuse on.
#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <memory>

#include "e2e/program.h"
#include "engine/engine.h"
#include "model/model.h"
#include "model/tokenizer/tokenizer.h"

namespace quadrille::testing {
namespace {

using engine::Engine;
using engine::EngineOptions;

constexpr int64_t kRequests = 64, kAnswerTokens = 80;

// Ids and the bits of their log-probabilities, one list a request.
using Answers = std::vector<std::vector<std::pair<int32_t, uint32_t>>>;

struct Setting {
  const char* name;
  int64_t batch;        // requests that run at the same time
  int64_t chunk;        // of a prompt
  int64_t cache_pages;  // of 64 positions
  bool prefix_cache;
  bool expect_preemption = false;
};

class EngineModel : public ::testing::TestWithParam<Setting> {
 protected:
  static void SetUpTestSuite() {
    if (abacus_path("w4a8").empty()) return;
    pool_ = std::make_unique<ThreadPool>(2);
    auto tokenizer = tokenizer::Tokenizer::load(abacus_path("w4a8"));
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    std::ifstream problems(abacus_path("gsm8k.jsonl"));
    std::string line;
    while (static_cast<int64_t>(prompts_.size()) < kRequests && std::getline(problems, line)) {
      const auto problem = nlohmann::json::parse(line);
      auto ids = tokenizer->encode(problem["question"].get<std::string>(), false);
      ASSERT_TRUE(ids);
      prompts_.push_back(*ids);
    }
    expected_ = answer({"alone", 1, 512, 256, false});
  }

  static Answers answer(const Setting& setting) {
    model::LoadOptions load;
    load.pool = pool_.get();
    load.cache_pages = setting.cache_pages;
    auto model = model::Model::load(abacus_path("w4a8"), load);
    EXPECT_TRUE(model) << model.error().message;
    EngineOptions options;
    options.max_sequences = setting.batch;
    options.prefill_chunk = setting.chunk;
    options.prefix_cache = setting.prefix_cache;
    Engine engine(**model, options);
    std::vector<engine::RequestId> ids;
    for (const auto& prompt : prompts_) {
      engine::Request request;
      request.prompt = prompt;
      request.max_tokens = kAnswerTokens;
      request.ignore_stop_ids = true;
      request.logprobs = 0;
      request.sampling.temperature = 0.8f;
      request.sampling.seed = ids.size();
      auto id = engine.submit(request);
      EXPECT_TRUE(id) << id.error().message;
      ids.push_back(*id);
    }
    for (auto more = engine.step(); more && *more;) more = engine.step();
    Answers answers;
    for (const auto id : ids) {
      auto update = engine.poll(id);
      EXPECT_TRUE(update);
      EXPECT_EQ(update->finish, engine::FinishReason::kLength);
      auto& tokens = answers.emplace_back();
      for (const auto& token : update->tokens) tokens.emplace_back(token.id, std::bit_cast<uint32_t>(token.logprob));
    }
    preemptions_ = engine.metrics().preemptions;
    return answers;
  }

  static inline std::unique_ptr<ThreadPool> pool_;
  static inline std::vector<std::vector<int32_t>> prompts_;
  static inline Answers expected_;
  static inline int64_t preemptions_ = 0;
};

TEST_P(EngineModel, AnswersAreBitwiseThoseOfARequestAlone) {
  if (abacus_path("w4a8").empty()) GTEST_SKIP() << kNoAbacus;
  ASSERT_EQ(expected_.size(), static_cast<size_t>(kRequests));
  EXPECT_EQ(answer(GetParam()), expected_);
  if (GetParam().expect_preemption) {
    EXPECT_GT(preemptions_, 0) << "the cache was meant to be too small";
  }
}

INSTANTIATE_TEST_SUITE_P(Settings, EngineModel,
                         ::testing::Values(Setting{"batch2", 2, 512, 256, false}, Setting{"batch7", 7, 512, 256, false},
                                           Setting{"batch64", 64, 512, 256, false}, Setting{"chunk1", 7, 1, 256, false},
                                           Setting{"chunk16", 64, 16, 256, false},
                                           Setting{"preempted", 64, 16, 9, false, true},
                                           Setting{"prefix", 64, 512, 256, true}),
                         [](const auto& setting) { return std::string(setting.param.name); });

}  // namespace
}  // namespace quadrille::testing
