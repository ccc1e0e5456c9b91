// SPDX-License-Identifier: Apache-2.0
// Ctrl-C, SIGTERM and closed pipes while a model runs: clean ends, and nothing half-written.
#include <gmock/gmock.h>
#include <signal.h>

#include <filesystem>
#include <limits>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

constexpr size_t kNoBytes = std::numeric_limits<size_t>::max();

class Stopping : public ::testing::Test {
 protected:
  TemporaryFolder folder;
  const std::string model = make_small_model(folder);
  // As long as the positions allow, on the slowest table: some ten seconds when nobody stops it.
  std::vector<std::string> long_run() const {
    const std::string abacus = abacus_path("w4a8");
    const std::vector<std::string> what = abacus.empty()
                                              ? std::vector<std::string>{"run", model, "--max-tokens", "480"}
                                              : std::vector<std::string>{"run", abacus, "--max-tokens", "1900"};
    std::vector<std::string> arguments = {"Hello", "--ignore-eos", "--kernels", "ref", "--threads", "1"};
    arguments.insert(arguments.begin(), what.begin(), what.end());
    return arguments;
  }
};

TEST_F(Stopping, CtrlCEndsARunWithWhatItHas) {
  RunOptions options;
  options.send_signal = SIGINT;
  options.signal_after_bytes = 4;
  const Outcome outcome = run_program(long_run(), options);
  EXPECT_EXIT_CODE(outcome, 130);
  EXPECT_EQ(outcome.signal, 0);
  EXPECT_GE(outcome.out.size(), 4u) << "the text that was there stays";
  EXPECT_THAT(outcome.err, HasSubstr("stopped on request"));
}

TEST_F(Stopping, SigtermDoesTheSame) {
  RunOptions options;
  options.send_signal = SIGTERM;
  options.signal_after_bytes = 4;
  EXPECT_EXIT_CODE(run_program(long_run(), options), 130);
}

TEST_F(Stopping, AClosedPipeEndsARunQuietly) {
  RunOptions options;
  options.close_stdout = true;
  options.close_after_bytes = 4;
  const Outcome outcome = run_program(long_run(), options);
  EXPECT_EXIT_CODE(outcome, 0);
  EXPECT_EQ(outcome.err, "");
}

TEST_F(Stopping, EvalReportsWhatItFinished) {
  std::string data;
  for (int i = 0; i < 4000; ++i) data += "{\"question\": \"Q\", \"answer\": \"#### 1\"}\n";
  write_text(folder / "data.jsonl", data);
  RunOptions options;
  options.send_signal = SIGINT;
  options.signal_after_bytes = kNoBytes;
  options.signal_after_seconds = 4;
  const Outcome outcome = run_program({"eval", "gsm8k", model, "--data", folder / "data.jsonl", "--kernels", "ref",
                                       "--batch", "1", "--max-tokens", "4", "--json", folder / "report.json", "-q"},
                                      options);
  EXPECT_EXIT_CODE(outcome, 130);
  const auto report = read_json(folder / "report.json");
  EXPECT_EQ(report["complete"], false);
  EXPECT_LT(report["count"].get<int>(), 4000);
  EXPECT_THAT(outcome.out, HasSubstr("Stopped early"));
}

TEST_F(Stopping, LogitsLeaveNoFile) {
  nlohmann::json ids = {{"sequences", nlohmann::json::array()}};
  for (int i = 0; i < 1000; ++i) ids["sequences"].push_back(std::vector<int>(500, 7));
  write_text(folder / "ids.json", ids.dump());
  RunOptions options;
  options.send_signal = SIGINT;
  options.signal_after_bytes = kNoBytes;
  options.signal_after_seconds = 2;
  const Outcome outcome = run_program(
      {"logits", model, "--ids", folder / "ids.json", "--out", folder / "out.safetensors", "--kernels", "ref"},
      options);
  EXPECT_EXIT_CODE(outcome, 130);
  EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors.partial"));
}

TEST_F(Stopping, ChatGoesOnAfterCtrlC) {
  RunOptions options;
  options.stdin_text = "One\nTwo\n";
  options.send_signal = SIGINT;
  options.signal_after_bytes = 2;
  const Outcome outcome =
      run_program({"chat", model, "--ignore-eos", "--max-tokens", "40", "--kernels", "ref", "-q"}, options);
  EXPECT_EXIT_CODE(outcome, 0);
  EXPECT_THAT(outcome.out, HasSubstr(" [stopped]\n"));
  EXPECT_GT(outcome.out.size(), outcome.out.find("[stopped]") + 20) << "the second line was answered";
}

}  // namespace
}  // namespace quadrille::testing
