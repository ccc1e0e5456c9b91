// SPDX-License-Identifier: Apache-2.0
// models/abacus over tensor-parallel ranks, as a user runs it: it answers as well as one rank, every size gives the
// same texts in every run, and threads give the bits of processes under mpirun. Its expert width of 128 is one group:
// every size above 1 cuts through it.
#include <cmath>
#include <cstdlib>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

constexpr int64_t kProblems = 50;

class TensorParallel : public ::testing::Test {
 protected:
  void SetUp() override {
    model = abacus_path("w4a8");
    if (model.empty()) GTEST_SKIP() << kNoAbacus;
  }

  std::vector<std::string> arguments(int64_t limit, const std::string& report) const {
    return {"eval",
            "gsm8k",
            model,
            "--data",
            abacus_path("gsm8k.jsonl"),
            "--limit",
            std::to_string(limit),
            "--max-tokens",
            "320",
            "-q",
            "--json",
            report};
  }

  nlohmann::json evaluate(int tp, int64_t limit, const std::vector<std::string>& more = {}) const {
    TemporaryFolder folder;
    auto all = arguments(limit, folder / "r.json");
    all.insert(all.end(), {"--tp", std::to_string(tp)});
    all.insert(all.end(), more.begin(), more.end());
    RunOptions options;
    options.timeout_seconds = 400;
    const Outcome outcome = run_program(all, options);
    EXPECT_EXIT_CODE(outcome, 0);
    return outcome.exit_code == 0 ? read_json(folder / "r.json") : nlohmann::json::object();
  }

  std::string model;
};

TEST_F(TensorParallel, EverySizeAnswersAsOneRankDoes) {
  const auto one = evaluate(1, kProblems);
  ASSERT_EQ(one["count"], kProblems);
  for (const int tp : {2, 3, 4}) {
    const auto found = evaluate(tp, kProblems);
    ASSERT_EQ(found["count"], kProblems) << tp;
    int64_t equal = 0;
    for (int64_t i = 0; i < kProblems; ++i) equal += found["records"][i]["text"] == one["records"][i]["text"] ? 1 : 0;
    std::cout << "tp " << tp << ": " << found["correct"] << " right (one rank: " << one["correct"] << "), " << equal
              << " of " << kProblems << " texts equal\n";
    EXPECT_GE(100 * equal, 99 * kProblems) << "tp " << tp;
    // Half a point of 50 problems is less than one.
    EXPECT_EQ(found["correct"], one["correct"]) << "tp " << tp;
  }
}

TEST_F(TensorParallel, EverySizeRepeatsItselfWhateverTheBatchAndTheThreads) {
  for (const int tp : {2, 3, 4}) {
    const auto first = evaluate(tp, 6, {"--batch", "6", "--threads", "1"});
    const auto again = evaluate(tp, 6, {"--batch", "2", "--threads", "8"});
    ASSERT_EQ(first["records"].size(), 6u);
    EXPECT_EQ(first["records"], again["records"]) << tp;
  }
}

TEST_F(TensorParallel, ChatsAsOneRankDoes) {
  const std::string lines = "What is 3 plus 4?\nAnd 5 times 6?\n/clear\nWhat is 3 plus 4?\n";
  const auto chat = [&](const char* tp) {
    const Outcome outcome = run_program({"chat", model, "-q", "--max-tokens", "24", "--tp", tp}, {.stdin_text = lines});
    EXPECT_EXIT_CODE(outcome, 0);
    return outcome.out;
  };
  const std::string one = chat("1");
  EXPECT_GE(lines_of(one).size(), 3u);  // an answer each, of a line or more
  EXPECT_EQ(chat("2"), one);
}

TEST_F(TensorParallel, BenchesAModelAndRandomWeights) {
  const std::vector<std::string> few = {"--rounds", "1",    "--prefill", "4",      "--decode",
                                        "1",        "--tp", "2",         "--json", "-q"};
  for (std::vector<std::string> all :
       {std::vector<std::string>{"bench", model}, {"bench", "--shape", "olmoe-1b-7b", "--layers", "1"}}) {
    all.insert(all.end(), few.begin(), few.end());
    const Outcome outcome = run_program(all);
    ASSERT_EXIT_OK(outcome);
    const auto found = parse_json(outcome.out);
    EXPECT_EQ(found["settings"]["tp"], 2);
    for (const char* series : {"decode", "prefill"}) {
      EXPECT_GT(found[series]["tokens_per_second"], 0) << series;
      EXPECT_GT(found[series]["ratio"], 0) << series;
      EXPECT_LE(found[series]["ratio"], 1) << series;
    }
  }
}

TEST_F(TensorParallel, ProcessesUnderMpirunGiveTheLogitsOfThreads) {
  if (std::system("command -v mpirun > /dev/null 2>&1") != 0) GTEST_SKIP() << "needs mpirun";
  TemporaryFolder folder;
  write_text(folder / "ids.json", R"({"sequences": [[5, 6, 7, 8, 9, 10, 11], [20, 3, 40]]})");
  std::vector<std::string> logits = {"logits", model, "--ids", folder / "ids.json", "-q", "--threads", "1"};
  auto threads = logits;
  threads.insert(threads.end(), {"--out", folder / "threads.safetensors", "--tp", "2"});
  EXPECT_EXIT_CODE(run_program(threads), 0);
  std::string command = "timeout 120 mpirun -n 2 --oversubscribe --allow-run-as-root '" + program_path() + "'";
  for (const std::string& argument : logits) command += " '" + argument + "'";
  command += " --out '" + (folder / "processes.safetensors") + "' < /dev/null > '" + (folder / "log") + "' 2>&1";
  if (std::system(command.c_str()) != 0) {
    const std::string log = read_text(folder / "log");
    if (log.find("libquadrille_mpi") != std::string::npos) GTEST_SKIP() << "needs the MPI module: " << log;
    FAIL() << log;
  }
  EXPECT_EQ(read_text(folder / "threads.safetensors"), read_text(folder / "processes.safetensors"));
}

TEST_F(TensorParallel, ASizeThatTheModelCannotBeCutForIsRefused) {
  const Outcome outcome = run_program({"run", model, "How many?", "--tp", "60", "-q"});
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_NE(outcome.err.find("60 ranks: the number of query heads is"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace quadrille::testing
