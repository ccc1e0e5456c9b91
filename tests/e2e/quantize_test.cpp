// SPDX-License-Identifier: Apache-2.0
// quadrille quantize on the bundled bf16 model: the folder runs, kills leave nothing half-written.
#include <gmock/gmock.h>
#include <signal.h>

#include <filesystem>
#include <limits>
#include <map>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Every file of a folder with its bytes.
std::map<std::string, std::string> contents(const std::string& path) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(path)) {
    files[entry.path().filename().string()] = read_text(entry.path().string());
  }
  return files;
}

class Quantize : public ::testing::Test {
 protected:
  void SetUp() override {
    source = abacus_path("bf16");
    if (source.empty()) GTEST_SKIP() << kNoAbacus;
  }
  std::vector<std::string> command(const std::string& out, std::vector<std::string> more = {}) const {
    more.insert(more.begin(), {"quantize", source, out});
    return more;
  }

  std::string source;
  TemporaryFolder folder;
};

TEST_F(Quantize, MakesAFolderThatRuns) {
  const Outcome outcome =
      run_program(command(folder / "out", {"--group-size", "64", "--json", folder / "report.json"}));
  ASSERT_EXIT_OK(outcome);
  EXPECT_THAT(outcome.out, HasSubstr("mlp.experts.down_proj"));
  EXPECT_THAT(outcome.out, HasSubstr("lm_head"));
  const auto report = read_json(folder / "report.json");
  EXPECT_EQ(report["group_size"], "64");
  // Uniform rounding in steps of absmax / 7.5: about 10 % of the rms for bell-shaped weights, never half of it.
  EXPECT_GT(report["total"]["relative_rms_error"].get<double>(), 0.01);
  EXPECT_LT(report["total"]["relative_rms_error"].get<double>(), 0.5);
  const auto inspected = parse_json(run_program({"inspect", folder / "out", "--json"}).out);
  EXPECT_EQ(inspected["quantization_format"], "pack-quantized");
  for (const auto& module : inspected["modules"]) {
    const auto kind = module["kind"].get<std::string>();
    if (kind == "router" || kind == "lm_head") {
      EXPECT_EQ(module["quantization"], "unquantized") << module["path"];
    }
    if (kind == "expert") {
      EXPECT_EQ(module["group_size"], "64") << module["path"];
    }
  }
  const Outcome answer = run_program({"run", folder / "out", "What is 2 + 3?", "--max-tokens", "4"});
  EXPECT_EXIT_CODE(answer, 0);
}

TEST_F(Quantize, EveryGroupSizeAndQuotientAndIgnore) {
  for (const std::string group : {"32", "128", "channel"}) {
    const std::string out = folder / group;
    ASSERT_EXIT_OK(run_program(command(out, {"--group-size", group, "--quotient", "bf16", "-q"})));
    ASSERT_EXIT_OK(run_program({"run", out, "What is 2 + 3?", "--max-tokens", "2", "-q"}));
  }
  ASSERT_EXIT_OK(
      run_program(command(folder / "part", {"--ignore", "re:.*self_attn.*", "--ignore", "re:.*layers.0.*"})));
  const auto inspected = parse_json(run_program({"inspect", folder / "part", "--json"}).out);
  size_t attention = 0, quantised = 0;
  for (const auto& module : inspected["modules"]) {
    const auto path = module["path"].get<std::string>();
    const bool is_left = path.find("self_attn") != std::string::npos || path.find("layers.0.") != std::string::npos;
    attention += path.ends_with("q_proj") ? 1 : 0;
    quantised += module["quantization"] == "w4a8" ? 1 : 0;
    if (is_left) {
      EXPECT_EQ(module["quantization"], "unquantized") << path;
    }
  }
  EXPECT_EQ(attention, 4u);
  EXPECT_EQ(quantised, 3u * 16 * 3) << "three layers of sixteen experts of three matrices";
}

TEST_F(Quantize, TheBundledFolderIsWhatTheProgramMakes) {
  const std::string bundled = abacus_path("w4a8");
  if (bundled.empty()) GTEST_SKIP() << kNoAbacus;
  ASSERT_EXIT_OK(run_program(command(folder / "out")));
  const auto made = contents(folder / "out");
  EXPECT_EQ(made.at("model.safetensors"), read_text(bundled + "/model.safetensors"));
  EXPECT_EQ(made.at("tokenizer.json"), read_text(bundled + "/tokenizer.json"));
}

TEST_F(Quantize, RefusesAnExistingFolderAndAQuantisedSource) {
  fs::create_directory(folder / "out");
  write_text(folder / "out/mine.txt", "keep");
  const Outcome exists = run_program(command(folder / "out"));
  EXPECT_EXIT_CODE(exists, 1);
  EXPECT_THAT(exists.err, HasSubstr("exists"));
  EXPECT_EQ(read_text(folder / "out/mine.txt"), "keep");
  const Outcome twice = run_program({"quantize", make_small_model(folder), folder / "again"});
  EXPECT_EXIT_CODE(twice, 1);
  EXPECT_THAT(twice.err, HasSubstr("is quantised already"));
  EXPECT_FALSE(fs::exists(folder / "again"));
}

// Stops the command after each of these times: whatever moment that is, OUT is whole or is not there. Returns how often
// it was stopped before OUT was there.
int stop_at_many_moments(const std::vector<std::string>& arguments, const std::string& out, int signal,
                         const std::map<std::string, std::string>& whole) {
  RunOptions options;
  options.send_signal = signal;
  options.signal_after_bytes = std::numeric_limits<size_t>::max();
  int stopped = 0;
  for (const double seconds : {0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.25, 0.4}) {
    options.signal_after_seconds = seconds;
    const Outcome outcome = run_program(arguments, options);
    if (fs::exists(out)) {
      EXPECT_EQ(contents(out), whole);
      fs::remove_all(out);
    } else {
      ++stopped;
      EXPECT_TRUE(outcome.exit_code == 130 || outcome.signal == signal) << describe(outcome);
    }
    // Ctrl-C before main() installed its handler ends the process at once; it has written nothing then.
    if (signal == SIGINT) {
      EXPECT_FALSE(fs::exists(out + ".partial")) << describe(outcome);
    }
  }
  return stopped;
}

TEST_F(Quantize, AKillLeavesNothingUnderTheName) {
  ASSERT_EXIT_OK(run_program(command(folder / "whole")));
  const auto whole = contents(folder / "whole");
  EXPECT_GT(stop_at_many_moments(command(folder / "out", {"--threads", "1"}), folder / "out", SIGKILL, whole), 0);
  // What a killed run left does not disturb the next one.
  ASSERT_EXIT_OK(run_program(command(folder / "out")));
  EXPECT_EQ(contents(folder / "out"), whole);
  EXPECT_FALSE(fs::exists(folder / "out.partial"));
}

TEST_F(Quantize, CtrlCLeavesNothingAtAll) {
  ASSERT_EXIT_OK(run_program(command(folder / "whole")));
  const auto whole = contents(folder / "whole");
  EXPECT_GT(stop_at_many_moments(command(folder / "out", {"--threads", "1"}), folder / "out", SIGINT, whole), 0);
}

TEST(QuantizeGolden, UnquantisedGoldenModelsOfEveryFamily) {
  for (const char* family : {"qwen3_moe", "qwen2_moe", "mixtral", "olmoe"}) {
    const auto source = golden_path(std::string("models/") + family + "/bf16");
    if (!source) GTEST_SKIP() << kNoGolden;
    TemporaryFolder folder;
    ASSERT_EXIT_OK(run_program({"quantize", *source, folder / "out", "--group-size", "32"}));
    write_text(folder / "ids.json", "{\"sequences\": [[1, 2, 3]]}");
    ASSERT_EXIT_OK(
        run_program({"logits", folder / "out", "--ids", folder / "ids.json", "--out", folder / "l.safetensors"}));
  }
}

}  // namespace
}  // namespace quadrille::testing
