// SPDX-License-Identifier: Apache-2.0
// What a person sees who types something wrong: exit codes, texts, where they are written. No model is needed.
#include <gmock/gmock.h>
#include <signal.h>

#include <filesystem>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Usage, HelpGoesToStdout) {
  const Outcome help = run_program({"--help"});
  EXPECT_EXIT_CODE(help, 0);
  for (const char* command : {"run", "chat", "inspect", "quantize", "eval", "bench", "version", "logits", "tokenize",
                              "detokenize", "template", "layer"}) {
    EXPECT_THAT(help.out, HasSubstr(command));
    const Outcome own = run_program({command, "--help"});
    EXPECT_EXIT_CODE(own, 0);
    EXPECT_THAT(own.out, HasSubstr("Usage")) << command;
    EXPECT_THAT(own.err, IsEmpty());
  }
}

TEST(Usage, CommandsThatRunAModelShareTheirOptions) {
  for (const char* command : {"run", "chat", "eval", "bench", "logits"}) {
    const Outcome help = run_program({command, "--help"});
    for (const char* option :
         {"--numerics", "--round", "--kernels", "--threads", "--seed", "--activations", "--scales", "--cache-tokens"}) {
      EXPECT_THAT(help.out, HasSubstr(option)) << command;
    }
  }
}

struct WrongUsage {
  std::vector<std::string> arguments;
  const char* expected;
};

TEST(Usage, WrongUsageIsTwo) {
  const std::vector<WrongUsage> cases = {
      {{}, "subcommand is required"},
      {{"nosuch"}, "nosuch"},
      {{"run"}, "MODEL"},
      {{"run", "m", "p", "--nosuch"}, "--nosuch"},
      {{"run", "m", "p", "--numerics", "fp8"}, "--numerics"},
      {{"run", "m", "p", "--round", "f16"}, "--round"},
      {{"run", "m", "p", "--kernels", "sse"}, "avx2"},
      {{"run", "m", "p", "--threads", "-1"}, "--threads"},
      {{"run", "m", "p", "--top-p", "1.5"}, "--top-p"},
      {{"run", "m", "p", "--temperature", "hot"}, "--temperature"},
      {{"run", "m", "p", "--prompt-file", "f"}, "excludes"},
      {{"run", "m", "--count", "3"}, "--problems"},
      {{"quantize", "a"}, "OUT"},
      {{"quantize", "a", "b", "--group-size", "48"}, "--group-size"},
      {{"eval", "gsm9k", "m", "--data", "d"}, "gsm9k"},
      {{"eval", "gsm8k", "m"}, "--data"},
      {{"eval", "gsm8k", "m", "--data", "d", "--shots", "2"}, "--shots-data"},
      {{"bench"}, "--shape"},
      {{"bench", "--shape", "gpt"}, "qwen3-30b-a3b"},
      {{"logits", "m", "--ids", "f"}, "--out"},
      {{"layer", "f"}, "OUT"},
      {{"inspect", "m", "--tp", "0"}, "--tp"},
      {{"inspect", "m", "--tp", "65"}, "--tp"},
  };
  for (const WrongUsage& wrong : cases) {
    const Outcome outcome = run_program(wrong.arguments);
    EXPECT_EXIT_CODE(outcome, 2);
    EXPECT_THAT(outcome.err, HasSubstr(wrong.expected));
    EXPECT_THAT(outcome.err, HasSubstr("--help"));
    EXPECT_THAT(outcome.out, IsEmpty());
  }
}

TEST(Usage, AMissingModelIsOneAndNamed) {
  TemporaryFolder folder;
  const std::string model = folder / "no-model";
  write_text(folder / "ids.json", "{\"sequences\": [[1, 2]]}");
  write_text(folder / "data.jsonl", "{\"question\": \"Q\", \"answer\": \"#### 1\"}\n");
  const std::vector<std::vector<std::string>> commands = {
      {"run", model, "hello"},
      {"chat", model},
      {"inspect", model},
      {"quantize", model, folder / "out"},
      {"eval", "gsm8k", model, "--data", folder / "data.jsonl"},
      {"bench", model},
      {"logits", model, "--ids", folder / "ids.json", "--out", folder / "out.safetensors"},
      {"tokenize", model},
      {"detokenize", model},
      {"template", model},
      {"layer", model, folder / "out.safetensors"},
  };
  for (const auto& command : commands) {
    const Outcome outcome = run_program(command);
    EXPECT_EXIT_CODE(outcome, 1);
    EXPECT_THAT(outcome.err, HasSubstr("no-model")) << command[0];
    EXPECT_THAT(outcome.out, IsEmpty());
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
}

TEST(Version, SaysWhatThisBuildIs) {
  const Outcome text = run_program({"version"});
  ASSERT_EXIT_OK(text);
  EXPECT_THAT(text.out, HasSubstr("quadrille 0."));
  const Outcome outcome = run_program({"version", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  EXPECT_FALSE(json["commit"].get<std::string>().empty());
  EXPECT_FALSE(json["compiler"].get<std::string>().empty());
  std::vector<std::string> names;
  for (const auto& table : json["tables"]) {
    names.push_back(table["name"]);
    EXPECT_EQ(table["available"].get<bool>(), table["reason"].get<std::string>().empty());
    // What runs everywhere must be there, and what is slow must not be the default.
    if (table["name"] == json["default_table"]) {
      EXPECT_TRUE(table["available"]);
      EXPECT_FALSE(table["by_name_only"]);
    }
  }
  EXPECT_THAT(names, ::testing::IsSupersetOf({"ref", "hopper", "generic", "avx2", "avx512", "amx", "vdpbf16"}));
}

TEST(Usage, AFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "needs /dev/full";
  const Outcome outcome = run_program({"version", "--json"});
  ASSERT_EXIT_OK(outcome);
  const std::string command = std::string(QD_PROGRAM) + " version --json > /dev/full 2> /dev/null";
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

TEST(Usage, AClosedStdoutDoesNotReachAFile) {
  TemporaryFolder folder;
  const std::string model = make_small_model(folder);
  write_text(folder / "ids.json", "{\"sequences\": [[1, 2]]}");
  const std::string out = folder / "out.safetensors";
  const std::string logits =
      std::string(QD_PROGRAM) + " logits " + model + " --ids " + (folder / "ids.json") + " --out ";
  ASSERT_EQ(std::system((logits + out + " > /dev/null").c_str()), 0);
  ASSERT_EQ(std::system((logits + out + ".2 >&-").c_str()), 0);
  EXPECT_EQ(read_text(out + ".2"), read_text(out));
}

TEST(Usage, AClosedPipeIsNoCrash) {
  RunOptions options;
  options.close_stdout = true;
  const Outcome outcome = run_program({"version", "--json"}, options);
  EXPECT_EXIT_CODE(outcome, 0);
  EXPECT_THAT(outcome.err, IsEmpty());
}

}  // namespace
}  // namespace quadrille::testing
