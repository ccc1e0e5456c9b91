// SPDX-License-Identifier: Apache-2.0
// One command under every launcher: the variables of torchrun and Slurm and mpirun give the bits of `--tp N`; launches
// that do not fit together are clear errors. torchrun and srun themselves are not needed: their variables are what the
// program reads.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <unistd.h>

#include "e2e/rank_runs.h"

namespace quadrille::testing {
namespace {

using std::chrono::seconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr seconds kLimit{60};

class Launch : public ::testing::Test {
 protected:
  void SetUp() override {
    model = abacus_path("w4a8");
    if (model.empty()) GTEST_SKIP() << kNoAbacus;
    write_text(folder / "ids.json", R"({"sequences": [[5, 6, 7, 8, 9, 10, 11, 300], [20, 3, 40]]})");
  }
  std::vector<std::string> logits(const std::string& out) const {
    return {"logits", model, "--ids", folder / "ids.json", "--out", folder / out, "-q", "--threads", "1"};
  }
  std::vector<std::string> answer() const {
    return {"run", model, "How many?", "--max-tokens", "40", "--ignore-eos", "-q", "--threads", "1"};
  }
  static std::vector<std::string> with(std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  // One failing launch: every process's status and text.
  static std::string failure(const std::vector<multi::Command>& commands) {
    std::string text;
    for (const auto& outcome : multi::run_together(commands, kLimit)) {
      EXPECT_EQ(outcome.status, 1) << outcome.output;
      EXPECT_FALSE(outcome.timed_out);
      text += outcome.output;
    }
    return text;
  }
  std::vector<multi::Command> torchrun(int ranks, const std::vector<std::string>& more = {}) const {
    return rank_commands(Launcher::kTorchrun, ranks, with(answer(), more));
  }

  std::string model;
  TemporaryFolder folder;
};

TEST_F(Launch, EveryLauncherGivesTheBitsOfThreads) {
  for (const int size : {2, 3}) {
    const std::string tp = std::to_string(size);
    ASSERT_EXIT_OK(run_program(with(logits("threads"), {"--tp", tp})));
    const Outcome threads = run_program(with(answer(), {"--tp", tp}));
    ASSERT_EXIT_OK(threads);
    for (const Launcher launcher : {Launcher::kTorchrun, Launcher::kSlurm, Launcher::kMpirun}) {
      SCOPED_TRACE(fmt::format("{} ranks, {}", size, launcher_name(launcher)));
      if (why_not(launcher) != nullptr) continue;
      for (const auto& outcome : multi::run_together(rank_commands(launcher, size, logits("ranks")), kLimit)) {
        ASSERT_EQ(outcome.status, 0) << outcome.output;
      }
      EXPECT_EQ(read_text(folder / "ranks"), read_text(folder / "threads"));
      // --tp may be said, when it is the number of processes. Ranks above 0 print nothing.
      const auto answers = multi::run_together(rank_commands(launcher, size, with(answer(), {"--tp", tp})), kLimit);
      EXPECT_EQ(answers[0].output, threads.out);
      for (size_t r = 1; r < answers.size(); ++r) EXPECT_EQ(answers[r].output, "");
    }
  }
}

TEST_F(Launch, TwoProcessesAreNotThreeRanks) {
  EXPECT_THAT(failure(torchrun(2, {"--tp", "3"})),
              HasSubstr("--tp 3: torchrun started 2 processes, and each is one rank"));
}

TEST_F(Launch, AMissingVariableIsNamed) {
  auto commands = torchrun(2);
  for (auto& command : commands) command.environment.erase("MASTER_PORT");
  EXPECT_THAT(failure(commands), HasSubstr("the environment variable MASTER_PORT is missing"));
  commands = rank_commands(Launcher::kSlurm, 2, answer());
  for (auto& command : commands) command.environment.erase("SLURM_STEP_NODELIST");
  EXPECT_THAT(failure(commands), HasSubstr("neither MASTER_ADDR nor SLURM_STEP_NODELIST"));
}

TEST_F(Launch, RanksThatDoNotComeAreNamed) {
  auto commands = torchrun(4, {"--rank-timeout", "2"});
  commands.erase(commands.begin() + 3);
  commands.erase(commands.begin() + 1);
  const std::string text = failure(commands);
  const std::string line = "2 of 4 ranks did not come within 2 s: missing 1, 3";
  EXPECT_THAT(text, HasSubstr(line));
  EXPECT_NE(text.find(line), text.rfind(line)) << "both that came say it: " << text;
}

TEST_F(Launch, ARankThatEndsBeforeTheOthersComeIsNamed) {
  auto commands = torchrun(3, {"--rank-timeout", "20"});
  commands.pop_back();
  multi::Processes processes(commands);
  ::usleep(1'000'000);
  processes.signal(1, SIGKILL);
  const auto outcomes = processes.finish(kLimit);
  EXPECT_EQ(outcomes[0].status, 1);
  EXPECT_LT(outcomes[0].seconds, 15);
  EXPECT_THAT(outcomes[0].output, HasSubstr("rank 1 came and ended before all ranks had come"));
}

TEST_F(Launch, APortInUseIsNamed) {
  const int taken = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(taken, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(taken, 8), 0);
  ASSERT_EQ(::getsockname(taken, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  auto commands = torchrun(2, {"--rank-timeout", "2"});
  for (auto& command : commands) command.environment["MASTER_PORT"] = port;
  const auto outcomes = multi::run_together(commands, kLimit);
  ::close(taken);
  EXPECT_EQ(outcomes[0].status, 1);
  EXPECT_EQ(outcomes[1].status, 1);
  EXPECT_THAT(outcomes[0].output, HasSubstr("Address already in use"));
  EXPECT_THAT(outcomes[0].output, HasSubstr(port));
  EXPECT_THAT(outcomes[1].output, HasSubstr("rank 1 found no rank 0 at 127.0.0.1 port " + port));
}

}  // namespace
}  // namespace quadrille::testing
