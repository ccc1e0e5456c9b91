// SPDX-License-Identifier: Apache-2.0
// A whole model in step: 1,000 greedy answers of abacus through the engine, with random delays before every step of
// every stream and poison in every fresh buffer, from the load on, against the undelayed run: not one text differs. On
// one GPU and on two. And the test sees what it is for: with a hand-over left out texts differ, or an error comes.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <memory>

#include "core/thread_pool.h"
#include "device/must.h"
#include "device_step/model_delays.h"
#include "engine/engine.h"
#include "formats/json.h"
#include "model/device_model.h"
#include "model/tokenizer/tokenizer.h"
#include "parallel/nccl.h"
#include "parallel/thread_group.h"

namespace quadrille::testing {
namespace {

using device::HandOver;
using model::DeviceModel;
using Texts = std::vector<std::vector<int32_t>>;

constexpr int64_t kRequests = 1000;
constexpr int64_t kMutantRequests = 16;
constexpr int64_t kAnswer = 40;  // tokens

// Streams that share a hardware queue wait for each other and would hide what is missing.
const bool kManyQueues = ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1) == 0;
// A kernel that is loaded when it is first launched may wait for those that run, and they for a rank that loads.
const bool kLoadsAtOnce = ::setenv("CUDA_MODULE_LOADING", "EAGER", 1) == 0;

std::string abacus() {
  return std::string(QD_SOURCE_DIR) + "/models/abacus";
}
// Has shared experts, so that a layer has two streams.
std::string with_shared_expert() {
  return std::string(QD_TEST_DATA_DIR) + "/models/qwen2_moe/w4a8-g64";
}

std::vector<engine::Request> greedy_requests(std::vector<std::vector<int32_t>> prompts) {
  std::vector<engine::Request> requests;
  for (std::vector<int32_t>& prompt : prompts) {
    engine::Request& request = requests.emplace_back();
    request.prompt = std::move(prompt);
    request.max_tokens = kAnswer;
  }
  return requests;
}

// The questions of abacus' own problems, as plain text.
std::vector<engine::Request> questions(int64_t count) {
  const auto tokenizer = must(tokenizer::Tokenizer::load(abacus() + "/w4a8"));
  std::ifstream file(abacus() + "/gsm8k.jsonl");
  std::vector<std::vector<int32_t>> prompts;
  std::string line;
  while (static_cast<int64_t>(prompts.size()) < count && std::getline(file, line)) {
    const auto json = nlohmann::json::parse(line);
    prompts.push_back(must(tokenizer.encode(json["question"].get<std::string>(), true)));
  }
  EXPECT_EQ(static_cast<int64_t>(prompts.size()), count);
  return greedy_requests(std::move(prompts));
}

std::vector<engine::Request> random_prompts(int64_t count, int32_t vocabulary) {
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t p = 0; p < count; ++p) {
    std::vector<int32_t>& ids = prompts.emplace_back();
    for (int32_t i = 0; i < 9 + 7 * (p % 5); ++i) ids.push_back((p * 131 + i * i * 17 + 3) % vocabulary);
  }
  return greedy_requests(std::move(prompts));
}

Result<std::unique_ptr<DeviceModel>> load(const std::string& folder, bool graphs, ThreadPool* pool,
                                          parallel::Communicator* ranks = nullptr) {
  model::LoadOptions options;
  options.pool = pool;
  options.ranks = ranks;
  options.cache_pages = 256;
  model::DeviceOptions device;
  QD_TRY(device.table, kernels::device_table());
  device.ordinal = ranks == nullptr ? 0 : ranks->rank();
  device.graphs = graphs;
  device.join_ranks = [](parallel::Communicator& host, int ordinal, device::Stream stream) {
    return parallel::nccl_communicator(host, ordinal, stream);
  };
  return DeviceModel::load(folder, options, device);
}

// Answers all requests; ranks all do the same steps, since the engine's decisions depend on tokens alone.
Result<Texts> answer(DeviceModel& model, const std::vector<engine::Request>& requests) {
  engine::Engine engine(model, {});
  std::vector<engine::RequestId> ids;
  for (const engine::Request& request : requests) {
    QD_TRY(const engine::RequestId id, engine.submit(request));
    ids.push_back(id);
  }
  for (bool has_more = true; has_more;) {
    QD_TRY(has_more, engine.step());
  }
  Texts texts(requests.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    QD_TRY(const engine::Update update, engine.poll(ids[i]));
    if (update.error) return *update.error;
    for (const engine::TokenOutput& token : update.tokens) texts[i].push_back(token.id);
  }
  return texts;
}

// The first text that differs, or "".
std::string difference(const Texts& got, const Texts& want) {
  if (got.size() != want.size()) return fmt::format("{} texts, expected {}", got.size(), want.size());
  size_t count = 0, first = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] == want[i]) continue;
    if (count++ == 0) first = i;
  }
  return count == 0 ? "" : fmt::format("{} of {} texts differ, the first is text {}", count, want.size(), first);
}

class ModelInStep : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    ASSERT_TRUE(kManyQueues && kLoadsAtOnce);
  }
  // Loads and answers.
  Texts texts_of(const std::string& folder, const std::vector<engine::Request>& requests, bool graphs = true) {
    const auto model = must(load(folder, graphs, &pool_));
    return must(answer(*model, requests));
  }

  ThreadPool pool_{2};
};

// Steps as graphs, where a delay stays what it was at the capture; then a part without, where every step has its own.
TEST_F(ModelInStep, ThousandRequestsOnOneGpu) {
  const auto requests = questions(kRequests);
  const Texts want = texts_of(abacus() + "/w4a8", requests);
  ModelDelays delays(11);
  const Harnessed harnessed(&delays);
  EXPECT_EQ(difference(texts_of(abacus() + "/w4a8", requests), want), "");
  const int64_t in_graphs = delays.steps();
  const std::vector<engine::Request> some(requests.begin(), requests.begin() + 64);
  const Texts of_some(want.begin(), want.begin() + 64);
  EXPECT_EQ(difference(texts_of(abacus() + "/w4a8", some, false), of_some), "");
  EXPECT_GT(in_graphs, 1000);
  EXPECT_GT(delays.steps(), in_graphs + 24 * 40);
  EXPECT_GT(delays.poisoned_bytes(), 0);
}

TEST_F(ModelInStep, ThousandRequestsOnTwoGpus) {
  const Result<int> gpus = device::count();
  if (!gpus || *gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  constexpr int kRanks = 2;
  const auto requests = questions(kRequests);
  const auto run = [&](Texts(&texts)[kRanks]) {
    must(parallel::run_rank_threads(kRanks, [&](parallel::Communicator& host) -> Status {
      ThreadPool pool(2);
      QD_TRY(const auto model, load(abacus() + "/w4a8", true, &pool, &host));
      QD_TRY(texts[host.rank()], answer(*model, requests));
      return host.barrier();
    }));
  };
  Texts want[kRanks], got[kRanks];
  run(want);
  EXPECT_EQ(difference(want[1], want[0]), "") << "of the ranks";
  ModelDelays delays(12);
  const Harnessed harnessed(&delays);
  run(got);
  for (int rank = 0; rank < kRanks; ++rank) EXPECT_EQ(difference(got[rank], want[0]), "") << "rank " << rank;
  EXPECT_GT(delays.steps(), 2000);
}

// A hand-over that may go missing, and the steps that come late then: those that it would have waited for.
struct Mutant {
  HandOver site;
  const char* slow;  // steps whose name begins so; "main", "side": all of the layer's stream
};

class ModelMutants : public ModelInStep, public ::testing::WithParamInterface<Mutant> {};

TEST_P(ModelMutants, ALeftOutHandOverChangesTexts) {
  const Mutant mutant = GetParam();
  const std::string slow = mutant.slow;
  const auto requests = random_prompts(kMutantRequests, 600);
  const Texts want = texts_of(with_shared_expert(), requests, false);
  for (const bool drops : {false, true}) {
    device::Stream late;  // where a whole stream is slow: known once the model is there
    ModelDelays delays(13);
    delays.slow_only([&](std::string_view step, device::Stream stream) {
      return late.handle != nullptr ? stream.handle == late.handle : step.starts_with(slow);
    });
    if (drops) delays.drop(mutant.site);
    const Harnessed harnessed(&delays);
    const auto texts = [&]() -> Result<Texts> {
      QD_TRY(const auto model, load(with_shared_expert(), false, &pool_));
      if (slow == "main") late = model->streams().main;
      if (slow == "side") late = model->streams().side;
      return answer(*model, requests);
    };
    // A load that finds damaged weights and logits that are no numbers show, too.
    const Result<Texts> got = texts();
    const std::string found = got ? difference(*got, want) : got.error().message;
    if (drops) {
      EXPECT_NE(found, "") << device::hand_over_name(mutant.site) << " was left out and nothing differs";
      std::printf("%s left out: %s\n", device::hand_over_name(mutant.site), found.c_str());
    } else {
      EXPECT_EQ(found, "") << device::hand_over_name(mutant.site) << " in its place";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ModelMutants,
                         ::testing::Values(Mutant{HandOver::kSharedBegins, "main"},
                                           Mutant{HandOver::kSharedEnds, "side"},
                                           Mutant{HandOver::kSourceCopied, "prepare.copy"}),
                         [](const auto& mutant) { return std::string(device::hand_over_name(mutant.param.site)); });

}  // namespace
}  // namespace quadrille::testing
