// SPDX-License-Identifier: Apache-2.0
// models/abacus over expert-parallel ranks, as a user runs it: the bytes of one expert rank at every size, in a grid
// those of its tensor-parallel ranks, as threads and as processes.
#include <cstdlib>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

class ExpertParallel : public ::testing::Test {
 protected:
  void SetUp() override {
    model = abacus_path("w4a8");
    if (model.empty()) GTEST_SKIP() << kNoAbacus;
    // A step of many tokens, and one of fewer than there are ranks.
    write_text(folder / "ids.json", R"({"sequences": [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 3, 40], [9]]})");
  }

  std::vector<std::string> arguments(const std::vector<std::string>& grid, const std::string& out) const {
    std::vector<std::string> all = {"logits", model,   "--ids", folder / "ids.json", "-q", "--threads",
                                    "1",      "--out", out};
    all.insert(all.end(), grid.begin(), grid.end());
    return all;
  }
  std::string logits(const std::vector<std::string>& grid) const {
    const std::string out = folder / "logits.safetensors";
    EXPECT_EXIT_CODE(run_program(arguments(grid, out)), 0);
    return read_text(out);
  }

  TemporaryFolder folder;
  std::string model;
};

TEST_F(ExpertParallel, EverySizeGivesTheBytesOfOneRank) {
  const std::string one = logits({}), one_vllm = logits({"--numerics", "vllm"});
  ASSERT_NE(one, one_vllm);
  for (const char* ep : {"2", "3", "4"}) {
    EXPECT_TRUE(logits({"--ep", ep}) == one) << ep;
    EXPECT_TRUE(logits({"--ep", ep, "--numerics", "vllm"}) == one_vllm) << ep;
  }
}

TEST_F(ExpertParallel, AGridGivesTheBytesOfItsTensorRanks) {
  const std::string two = logits({"--tp", "2"});
  EXPECT_TRUE(logits({"--tp", "2", "--ep", "2"}) == two);
  EXPECT_TRUE(logits({"--tp", "2", "--ep", "3"}) == two);
}

TEST_F(ExpertParallel, TextsAreThoseOfOneRankWhateverTheBatch) {
  const auto answer = [&](const std::vector<std::string>& more) {
    std::vector<std::string> all = {
        "eval",         "gsm8k", model, "--data", abacus_path("gsm8k.jsonl"), "--limit", "6",
        "--max-tokens", "200",   "-q",  "--json", folder / "r.json"};
    all.insert(all.end(), more.begin(), more.end());
    EXPECT_EXIT_CODE(run_program(all), 0);
    return read_json(folder / "r.json")["records"];
  };
  const auto one = answer({"--batch", "6"});
  ASSERT_EQ(one.size(), 6u);
  EXPECT_EQ(answer({"--batch", "6", "--ep", "3"}), one);
  EXPECT_EQ(answer({"--batch", "2", "--ep", "2"}), one);
}

TEST_F(ExpertParallel, ProcessesGiveTheBytesOfThreads) {
  if (std::system("command -v mpirun > /dev/null 2>&1") != 0) GTEST_SKIP() << "needs mpirun";
  const std::string threads = logits({"--tp", "2", "--ep", "2"});
  const std::string out = folder / "processes.safetensors";
  std::string command = "timeout 120 mpirun -n 4 --oversubscribe --allow-run-as-root '" + program_path() + "'";
  for (const std::string& argument : arguments({"--ep", "2"}, out)) command += " '" + argument + "'";
  command += " < /dev/null > '" + (folder / "log") + "' 2>&1";
  if (std::system(command.c_str()) != 0) {
    const std::string log = read_text(folder / "log");
    if (log.find("libquadrille_mpi") != std::string::npos) GTEST_SKIP() << "needs the MPI module: " << log;
    FAIL() << log;
  }
  EXPECT_TRUE(read_text(out) == threads);
}

}  // namespace
}  // namespace quadrille::testing
