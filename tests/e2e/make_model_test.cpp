// SPDX-License-Identifier: Apache-2.0
// quadrille make-model: folders that the other commands read, the same bytes for the same seed, nothing left of a run
// that was stopped or killed.
#include <gmock/gmock.h>
#include <signal.h>

#include <filesystem>
#include <limits>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// A sixteenth of olmoe-1b-7b's layers and vocabulary: 64 experts, 220 MB.
std::vector<std::string> command(const std::string& out, std::vector<std::string> more = {}) {
  more.insert(more.begin(), {"make-model", out, "--shape", "olmoe-1b-7b", "--layers", "1", "--vocabulary", "3000"});
  return more;
}

TEST(MakeModel, TheOtherCommandsReadIt) {
  const TemporaryFolder folder;
  const Outcome made = run_program(command(folder / "m", {"--shard-mib", "64", "--json", "-", "-q"}));
  ASSERT_EXIT_OK(made);
  const auto report = parse_json(made.out);
  EXPECT_EQ(report["seed"], 1);
  EXPECT_GT(report["files"].size(), 3u);
  const Outcome inspected = run_program({"inspect", folder / "m", "--json"});
  ASSERT_EXIT_OK(inspected);
  EXPECT_EQ(parse_json(inspected.out)["quantization_format"], "pack-quantized");
  write_text(folder / "ids.json", R"({"sequences": [[1, 2999, 17]]})");
  ASSERT_EXIT_OK(run_program({"logits", folder / "m", "--ids", folder / "ids.json", "--out", folder / "l.safetensors",
                              "--device", "cpu", "-q"}));

  const Outcome again = run_program(command(folder / "m"));
  EXPECT_EXIT_CODE(again, 1);
  EXPECT_THAT(again.err, HasSubstr("exists already"));
}

TEST(MakeModel, WrongUsage) {
  const TemporaryFolder folder;
  EXPECT_EXIT_CODE(run_program({"make-model", folder / "m"}), 2);
  EXPECT_EXIT_CODE(run_program({"make-model", folder / "m", "--shape", "nothing"}), 2);
  EXPECT_EXIT_CODE(run_program(command(folder / "m", {"--config", "c.json"})), 2);
  EXPECT_EXIT_CODE(run_program({"make-model", folder / "m", "--config", folder / "none.json"}), 1);
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

class Killed : public ::testing::TestWithParam<int> {};

TEST_P(Killed, LeavesNothingThatLooksWhole) {
  const TemporaryFolder folder;
  RunOptions options;
  options.send_signal = GetParam();
  options.signal_after_bytes = std::numeric_limits<size_t>::max();
  options.signal_after_seconds = 0.4;
  const std::vector<std::string> large = {"make-model", folder / "m", "--shape", "olmoe-1b-7b", "--layers",
                                          "8",          "--threads",  "1",       "-q"};
  const Outcome outcome = run_program(large, options);
  EXPECT_FALSE(fs::exists(folder / "m"));
  if (GetParam() != SIGKILL) {
    EXPECT_EXIT_CODE(outcome, 130);
    EXPECT_TRUE(fs::is_empty(folder.path()));
  }
  // Whatever lies there is removed by the next run.
  ASSERT_EXIT_OK(run_program(command(folder / "m", {"-q"})));
  EXPECT_FALSE(fs::exists(folder / "m.partial"));
}

INSTANTIATE_TEST_SUITE_P(MakeModel, Killed, ::testing::Values(SIGINT, SIGTERM, SIGKILL));

}  // namespace
}  // namespace quadrille::testing
