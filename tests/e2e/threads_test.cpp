// SPDX-License-Identifier: Apache-2.0
// The bundled model's logits with any number of threads and every --numa choice of this machine are the same bits; what
// the machine does not have is refused by name.
#include <cstring>

#include "e2e/program.h"
#include "model/model.h"

namespace quadrille::testing {
namespace {

// Logits of a prompt of 70 tokens in one step, then of six tokens one by one.
std::vector<float> logits_of(const std::string& folder, kernels::Numerics numerics, ThreadPool& pool) {
  model::LoadOptions options;
  options.numerics = numerics;
  options.pool = &pool;
  options.cache_pages = 2;
  auto model = model::Model::load(folder, options);
  EXPECT_TRUE(model) << (model ? "" : model.error().message);
  if (!model) return {};
  constexpr int32_t kPrompt = 70, kAll = 76;
  const std::vector<int32_t> page_table = {1, 0};
  std::vector<float> logits;
  for (int32_t done = 0; done < kAll;) {
    const int32_t end = done == 0 ? kPrompt : done + 1;
    std::vector<int32_t> ids, positions, rows;
    for (int32_t p = done; p < end; ++p) {
      ids.push_back(3 + p * 37 % 200);
      positions.push_back(p);
      rows.push_back(p - done);
    }
    const std::vector<int32_t> sequence(ids.size(), 0);
    const size_t before = logits.size();
    logits.resize(before + ids.size() * static_cast<size_t>((*model)->vocab_size()));
    const Status ran =
        (*model)->run({ids, positions, sequence, page_table, 2, rows}, std::span(logits).subspan(before));
    EXPECT_TRUE(ran) << (ran ? "" : ran.error().message);
    done = end;
  }
  return logits;
}

TEST(Threads, TheLogitsOfAbacusDoNotDependOnTheirNumber) {
  const std::string folder = abacus_path("w4a8");
  if (folder.empty()) GTEST_SKIP() << kNoAbacus;
  for (const auto numerics : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
    ThreadPool one(1);
    const std::vector<float> expected = logits_of(folder, numerics, one);
    ASSERT_FALSE(expected.empty());
    for (const int threads : {2, 3, 7}) {
      ThreadPool pool(threads, ThreadPool::Start::kAll);
      const std::vector<float> found = logits_of(folder, numerics, pool);
      ASSERT_EQ(found.size(), expected.size());
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0) << threads << " threads";
    }
  }
}

TEST(Numa, EveryChoiceOfThisMachineGivesTheSameText) {
  const std::string folder = abacus_path("w4a8");
  if (folder.empty()) GTEST_SKIP() << kNoAbacus;
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"run", folder,         "Ann has 3 apples and buys 4. How many?",
                                          "-q",  "--max-tokens", "12"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  };
  const Outcome off = run({});
  ASSERT_EXIT_OK(off);
  for (const char* choice : {"off", "interleave", "rank"}) {
    const Outcome placed = run({"--numa", choice});
    ASSERT_EXIT_OK(placed);
    EXPECT_EQ(placed.out, off.out) << choice;
  }
  EXPECT_EQ(run({"--numa", "rank", "--tp", "2"}).out, run({"--tp", "2"}).out);
}

TEST(Numa, AbsentNodesAndOtherWordsAreRefused) {
  const std::string folder = abacus_path("w4a8");
  if (folder.empty()) GTEST_SKIP() << kNoAbacus;
  const Outcome absent = run_program({"run", folder, "Hi", "-q", "--numa", "node=4000"});
  EXPECT_EXIT_CODE(absent, 1);
  EXPECT_NE(absent.err.find("--numa node=4000: this machine has node"), std::string::npos) << absent.err;
  const Outcome word = run_program({"run", folder, "Hi", "--numa", "left"});
  EXPECT_EXIT_CODE(word, 2);
  EXPECT_NE(word.err.find("'left': expected off, interleave, rank or node=K"), std::string::npos) << word.err;
}

}  // namespace
}  // namespace quadrille::testing
