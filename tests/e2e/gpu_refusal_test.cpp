// SPDX-License-Identifier: Apache-2.0
// `--device cuda` on a machine that cannot: one clear line, exit code 1, nothing half-done; and options that do not go
// together.
#include <unistd.h>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

std::string folder() {
  return std::string(QD_SOURCE_DIR) + "/models/abacus/w4a8";
}

// Whether a GPU is why the program would go on.
bool has_gpu() {
  return run_program({"bench", folder(), "--device", "cuda", "--prefill", "1", "--decode", "1", "--rounds", "1",
                      "--batch", "1", "--context", "1", "-q"})
             .exit_code == 0;
}

TEST(GpuRefusal, EveryCommandSaysWhyInOneLine) {
  if (has_gpu()) GTEST_SKIP() << "this machine has a GPU";
  const TemporaryFolder place;
  write_text(place / "ids.json", R"({"sequences": [[1, 2, 3]]})");
  const std::vector<std::vector<std::string>> commands = {
      {"run", folder(), "Hello"},
      {"chat", folder()},
      {"eval", "gsm8k", folder(), "--data", std::string(QD_SOURCE_DIR) + "/models/abacus/gsm8k.jsonl", "--limit", "1",
       "--json", place / "r.json"},
      {"logits", folder(), "--ids", place / "ids.json", "--out", place / "l.safetensors"},
      {"verify", folder(), "--tp", "2"},
      {"verify", folder(), "--against", "cpu"},
      {"bench", folder()},
      {"bench", "--shape", "olmoe-1b-7b", "--layers", "1"}};
  for (std::vector<std::string> command : commands) {
    command.insert(command.end(), {"--device", "cuda", "-q"});
    const Outcome outcome = run_program(command);
    EXPECT_EQ(outcome.exit_code, 1) << describe(outcome);
    EXPECT_EQ(outcome.out, "") << describe(outcome);
    ASSERT_EQ(lines_of(outcome.err).size(), 1u) << describe(outcome);
    // Of the machine: what was expected. Of a build without CUDA: how to make another.
    const bool built = outcome.err.find("-DQD_CUDA=ON") == std::string::npos;
    EXPECT_TRUE(!built || outcome.err.find("expected") != std::string::npos) << outcome.err;
    EXPECT_TRUE(outcome.err.find("GPU") != std::string::npos || outcome.err.find("CUDA") != std::string::npos)
        << outcome.err;
    EXPECT_LT(outcome.seconds, 20);
  }
  for (const char* file : {"r.json", "r.json.partial", "l.safetensors", "l.safetensors.partial"}) {
    EXPECT_NE(::access((place / file).c_str(), F_OK), 0) << file;
  }
}

TEST(GpuRefusal, OptionsThatDoNotGoTogether) {
  const Outcome unknown = run_program({"run", folder(), "Hello", "--device", "gpu"});
  EXPECT_EQ(unknown.exit_code, 2) << describe(unknown);
  const Outcome number = run_program({"run", folder(), "Hello", "--device", "cuda:x"});
  EXPECT_EQ(number.exit_code, 2) << describe(number);
  const Outcome memory = run_program({"run", folder(), "Hello", "--gpu-memory", "1G", "-q"});
  EXPECT_EQ(memory.exit_code, 1) << describe(memory);
  EXPECT_NE(memory.err.find("--device cuda"), std::string::npos) << memory.err;
  const Outcome table = run_program({"run", folder(), "Hello", "--device", "cuda", "--kernels", "generic", "-q"});
  EXPECT_EQ(table.exit_code, 1) << describe(table);
  EXPECT_NE(table.err.find("--kernels"), std::string::npos) << table.err;
  const Outcome share = run_program({"run", folder(), "Hello", "--device", "cuda", "--gpu-memory", "many", "-q"});
  EXPECT_EQ(share.exit_code, 1) << describe(share);
  EXPECT_NE(share.err.find("--gpu-memory"), std::string::npos) << share.err;
}

}  // namespace
}  // namespace quadrille::testing
