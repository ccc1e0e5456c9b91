// SPDX-License-Identifier: Apache-2.0
// The engine over a model on a GPU: ids do not depend on batch, chunks, neighbours, or on whether steps are enqueued
// ahead of the host and drawn on the device or read and drawn by it; and running ahead is faster.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "device/device.h"
#include "device/must.h"
#include "device/random_data.h"
#include "model/device_model.h"
#include "unit/model/golden_model.h"

namespace quadrille::testing {
namespace {

using engine::Engine;
using engine::EngineOptions;
using engine::Request;
using model::DeviceModel;
using Answers = std::vector<std::vector<int32_t>>;

std::unique_ptr<DeviceModel> abacus_on_gpu(const std::string& kind, int64_t cache_pages) {
  model::DeviceOptions device;
  device.table = must(kernels::device_table());
  model::LoadOptions options = options_of({"", kernels::Numerics::kExact, kernels::Rounding::kBf16});
  options.cache_pages = cache_pages;
  return must(DeviceModel::load(std::string(QD_SOURCE_DIR) + "/models/abacus/" + kind, options, device));
}

// Prompts of all lengths; every third one greedy, the others drawn by each filter and by all of them.
std::vector<Request> requests(int64_t count, int64_t vocab, int64_t max_tokens) {
  std::vector<Request> out(static_cast<size_t>(count));
  for (size_t s = 0; s < out.size(); ++s) {
    Request& request = out[s];
    const auto length = static_cast<size_t>(1 + (17 + 29 * s) % 130);
    for (size_t i = 0; i < length; ++i) {
      request.prompt.push_back(static_cast<int32_t>(hash(s, i) % static_cast<uint64_t>(vocab)));
    }
    request.max_tokens = max_tokens - static_cast<int64_t>(s % 5);
    request.sampling.seed = 100 + s;
    if (s % 3 == 0) continue;
    request.sampling.temperature = s % 3 == 1 ? 0.8F : 1.4F;
    if (s % 4 == 1 || s % 4 == 0) request.sampling.top_k = 20;
    if (s % 4 == 2 || s % 4 == 0) request.sampling.top_p = 0.9F;
    if (s % 4 == 3 || s % 4 == 0) request.sampling.min_p = 0.02F;
  }
  return out;
}

// Requests that arrive `at_once` at a time, `steps_between` steps apart.
struct Arrivals {
  size_t at_once = 1 << 20;
  int steps_between = 0;
};

Answers answers(DeviceModel& model, const EngineOptions& options, const std::vector<Request>& all,
                const Arrivals& arrivals = {}, int64_t* preemptions = nullptr) {
  Engine engine(model, options);
  std::vector<engine::RequestId> ids;
  bool goes_on = true;
  while (goes_on || ids.size() < all.size()) {
    for (size_t i = 0; i < arrivals.at_once && ids.size() < all.size(); ++i) {
      ids.push_back(must(engine.submit(all[ids.size()])));
    }
    goes_on = must(engine.step());
    for (int i = 1; i < arrivals.steps_between; ++i) goes_on = must(engine.step());
  }
  Answers out;
  for (const engine::RequestId id : ids) {
    const engine::Update update = must(engine.poll(id));
    EXPECT_EQ(update.finish, engine::FinishReason::kLength);
    std::vector<int32_t>& tokens = out.emplace_back();
    for (const engine::TokenOutput& token : update.tokens) tokens.push_back(token.id);
  }
  EXPECT_EQ(engine.metrics().free_pages, engine.metrics().total_pages);
  if (preemptions != nullptr) *preemptions = engine.metrics().preemptions;
  return out;
}

class EngineOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  }
};

TEST_F(EngineOnGpu, AnswersDependOnNothingElse) {
  const auto gpu = abacus_on_gpu("w4a8", 300);
  const std::vector<Request> all = requests(64, gpu->vocab_size(), 40);
  const Answers want = answers(*gpu, {.run_ahead = false}, all);  // the host reads and draws
  const std::map<std::string, std::pair<EngineOptions, Arrivals>> settings = {
      {"64 ahead", {{}, {}}},
      {"7 ahead", {{.max_sequences = 7}, {}}},
      {"7 read", {{.max_sequences = 7, .run_ahead = false}, {}}},
      {"chunks of 16 in 64", {{.prefill_chunk = 16}, {}}},
      {"chunks of 16 in 7, read", {{.max_sequences = 7, .prefill_chunk = 16, .run_ahead = false}, {}}},
      {"few tokens a step", {{.max_batch_tokens = 23}, {}}},
      {"prompts beside answers", {{.prefill_chunk = 32}, {2, 3}}},
      {"one arrival a step, prefixes kept", {{.prefix_cache = true}, {1, 1}}},
  };
  for (const auto& [name, setting] : settings) {
    const Answers got = answers(*gpu, setting.first, all, setting.second);
    for (size_t s = 0; s < all.size(); ++s) EXPECT_EQ(got[s], want[s]) << name << ", request " << s;
  }
  for (size_t s = 0; s < 12; ++s) {
    EXPECT_EQ(answers(*gpu, {}, {all[s]})[0], want[s]) << "alone " << s;
  }
  EXPECT_EQ(answers(*gpu, {}, all), want) << "again";
}

TEST_F(EngineOnGpu, PreemptionsChangeNoId) {
  const auto large = abacus_on_gpu("bf16", 300), small = abacus_on_gpu("bf16", 12);
  const std::vector<Request> all = requests(24, large->vocab_size(), 80);
  int64_t preemptions = 0;
  EXPECT_EQ(answers(*small, {}, all, {}, &preemptions), answers(*large, {.run_ahead = false}, all));
  EXPECT_GT(preemptions, 0);
}

// The best of three rounds each, in turn; answers of 200 tokens, 64 at a time.
void expect_ahead_is_faster(DeviceModel& model, const std::vector<Request>& all, const std::string& name) {
  std::map<bool, double> best;
  std::map<bool, Answers> found;
  for (int round = 0; round < 3; ++round) {
    for (const bool ahead : {false, true}) {
      const auto start = std::chrono::steady_clock::now();
      found[ahead] = answers(model, {.run_ahead = ahead}, all);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      best[ahead] = best.contains(ahead) ? std::min(best[ahead], seconds) : seconds;
    }
  }
  EXPECT_EQ(found[true], found[false]) << name;
  EXPECT_LT(best[true], best[false]) << name;
  int64_t tokens = 0;
  for (const auto& answer : found[true]) tokens += static_cast<int64_t>(answer.size());
  for (const auto& [ahead, seconds] : best) {
    const std::string rate = fmt::format("{:.0f}", static_cast<double>(tokens) / seconds);
    ::testing::Test::RecordProperty(name + (ahead ? "_tokens_per_second_ahead" : "_tokens_per_second_read"), rate);
  }
}

TEST_F(EngineOnGpu, RunningAheadIsFaster) {
  const auto gpu = abacus_on_gpu("w4a8", 400);
  std::vector<Request> all = requests(64, gpu->vocab_size(), 200);
  expect_ahead_is_faster(*gpu, all, "drawn");
  for (Request& request : all) request.sampling = {};
  expect_ahead_is_faster(*gpu, all, "greedy");
}

}  // namespace
}  // namespace quadrille::testing
