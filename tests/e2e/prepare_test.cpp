// SPDX-License-Identifier: Apache-2.0
// quadrille prepare: the folder takes the checkpoint's place with the same answers; kills leave nothing half-written.
#include <gmock/gmock.h>
#include <signal.h>

#include <filesystem>
#include <limits>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Prepare : public ::testing::Test {
 protected:
  void SetUp() override {
    source = make_small_model(folder);
    write_text(folder / "ids.json", "{\"sequences\": [[1, 2, 3, 40, 50], [7]]}");
  }
  std::string logits(const std::string& model, const std::string& numerics) {
    const std::string out = folder / "logits.safetensors";
    const Outcome outcome =
        run_program({"logits", model, "--numerics", numerics, "--ids", folder / "ids.json", "--out", out, "-q"});
    EXPECT_EXIT_CODE(outcome, 0);
    return read_text(out);
  }

  TemporaryFolder folder;
  std::string source;
};

TEST_F(Prepare, TheFolderGivesTheBitsOfItsCheckpoint) {
  for (const std::string numerics : {"exact", "vllm"}) {
    const std::string out = folder / numerics;
    const Outcome made = run_program({"prepare", source, out, "--numerics", numerics, "--json", "-", "-q"});
    ASSERT_EXIT_OK(made);
    EXPECT_EQ(parse_json(made.out)["numerics"], numerics);
    EXPECT_EQ(logits(out, numerics), logits(source, numerics));
  }
  for (const auto& arguments : std::vector<std::vector<std::string>>{
           {"run", folder / "exact", "What is 2 + 3?", "--max-tokens", "2", "-q"},
           {"run", folder / "exact", "What is 2 + 3?", "--max-tokens", "2", "-q", "--ep", "2"},
           {"inspect", folder / "exact", "--verify"}}) {
    EXPECT_EXIT_CODE(run_program(arguments), 0);
  }
}

TEST_F(Prepare, SaysWhatItIsNotFor) {
  ASSERT_EXIT_OK(run_program({"prepare", source, folder / "out"}));
  const auto expect = [&](const std::vector<std::string>& arguments, const std::string& words) {
    const Outcome outcome = run_program(arguments);
    EXPECT_EXIT_CODE(outcome, 1);
    EXPECT_THAT(outcome.err, HasSubstr(words));
  };
  expect({"run", folder / "out", "x", "--numerics", "vllm"}, "give '--numerics exact'");
  expect({"run", folder / "out", "x", "--tp", "2"}, "need the checkpoint that it was made from");
  expect({"quantize", folder / "out", folder / "again"}, "need the checkpoint that it was made from");
  expect({"prepare", source, folder / "out"}, "exists already");
  expect({"inspect", source, "--verify"}, "a checkpoint has none");
  std::string bytes = read_text(folder / "out/weights.quadrille");
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
  write_text(folder / "out/weights.quadrille", bytes);
  expect({"inspect", folder / "out", "--verify"}, "quadrille prepare");
}

TEST_F(Prepare, AKillLeavesNothingUnderTheName) {
  const std::string out = folder / "out";
  RunOptions options;
  options.send_signal = SIGKILL;
  options.signal_after_bytes = std::numeric_limits<size_t>::max();
  for (const double seconds : {0.0, 0.005, 0.01, 0.02, 0.03}) {
    options.signal_after_seconds = seconds;
    run_program({"prepare", source, out, "--threads", "1"}, options);
    if (!fs::exists(out)) continue;
    EXPECT_EXIT_CODE(run_program({"inspect", out, "--verify"}), 0);
    fs::remove_all(out);
  }
  // What a killed run left does not disturb the next one.
  ASSERT_EXIT_OK(run_program({"prepare", source, out}));
  EXPECT_FALSE(fs::exists(out + ".partial"));
}

}  // namespace
}  // namespace quadrille::testing
