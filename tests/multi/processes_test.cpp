// SPDX-License-Identifier: Apache-2.0
// Ranks as processes: every body gives the bits of the threads, and a rank that is killed, ends or fails in any phase
// ends all within seconds, each with a line that names it and the phase.
#include <gtest/gtest.h>

#include <unistd.h>
#include <fstream>

#include "multi/collective_checks.h"
#include "multi/processes.h"
#include "parallel/socket.h"
#include "parallel/thread_group.h"

namespace quadrille::multi {
namespace {

using std::chrono::seconds;

constexpr seconds kLimit{30};  // that of the promise; passing takes a few seconds

// A port of the range below those that the system hands out, different for each case of this process.
std::string next_port() {
  static int count = 0;
  return std::to_string(12000 + (::getpid() * 37 + count++) % 8000);
}

std::vector<Command> torchrun_commands(int ranks, const std::vector<std::string>& arguments) {
  const std::string port = next_port();
  std::vector<Command> commands;
  for (int r = 0; r < ranks; ++r) {
    Command& command = commands.emplace_back();
    command.arguments = {QD_PARALLEL_RANKS};
    command.arguments.insert(command.arguments.end(), arguments.begin(), arguments.end());
    command.environment = {{"RANK", std::to_string(r)},
                           {"WORLD_SIZE", std::to_string(ranks)},
                           {"LOCAL_RANK", std::to_string(r)},
                           {"MASTER_ADDR", "127.0.0.1"},
                           {"MASTER_PORT", port}};
  }
  return commands;
}

std::vector<Command> mpirun_command(int ranks, const std::vector<std::string>& arguments) {
  Command command;
  command.arguments = {"mpirun",         "-n", std::to_string(ranks), "--oversubscribe", "--allow-run-as-root",
                       QD_PARALLEL_RANKS};
  command.arguments.insert(command.arguments.end(), arguments.begin(), arguments.end());
  return {command};
}

const char* why_no_mpi() {
  if (!QD_HAS_MPI) return "this build has no MPI module (libopenmpi-dev)";
  return on_path("mpirun") ? nullptr : "mpirun is not installed (openmpi-bin)";
}

// The digest that threads give.
std::string thread_digest(int ranks) {
  std::vector<uint64_t> digest(static_cast<size_t>(ranks));
  const Status done = parallel::run_rank_threads(ranks, [&](parallel::Communicator& c) -> Status {
    const std::string wrong = check_collectives(c, digest[static_cast<size_t>(c.rank())]);
    if (!wrong.empty()) return make_error(ErrorCode::kInvalidData, "{}", wrong);
    return {};
  });
  EXPECT_TRUE(done) << done.error().message;
  return fmt::format("digest {:016x}", digest[0]);
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

void expect_same_bits(const std::vector<Command>& commands, int ranks, const std::string& body) {
  std::string output;
  for (const Outcome& outcome : run_together(commands, seconds(120))) {
    EXPECT_EQ(outcome.status, 0) << outcome.output;
    EXPECT_FALSE(outcome.timed_out);
    output += outcome.output;
  }
  EXPECT_EQ(count_of(output, body + " of " + std::to_string(ranks) + " ranks"), static_cast<size_t>(ranks)) << output;
  EXPECT_EQ(count_of(output, thread_digest(ranks)), static_cast<size_t>(ranks)) << output;
}

TEST(Tcp, GivesTheBitsOfThreads) {
  for (const int ranks : {2, 3, 5, 8}) {
    SCOPED_TRACE(ranks);
    expect_same_bits(torchrun_commands(ranks, {"check"}), ranks, "tcp");
  }
}

TEST(Tcp, MeetsAtAPointThatTheCallerCarries) {
  const std::string file = testing::TempDir() + "/meeting_" + next_port();
  std::vector<Command> commands;
  for (int r = 0; r < 3; ++r) {
    commands.push_back(
        {{QD_PARALLEL_RANKS, "check"}, {{"LAUNCH_POINT", file}, {"SELF", std::to_string(r)}, {"RANKS", "3"}}});
  }
  expect_same_bits(commands, 3, "tcp");
  std::remove(file.c_str());
}

TEST(Mpi, GivesTheBitsOfThreads) {
  if (const char* reason = why_no_mpi()) GTEST_SKIP() << reason;
  for (const int ranks : {2, 3, 4}) {
    SCOPED_TRACE(ranks);
    expect_same_bits(mpirun_command(ranks, {"check"}), ranks, "mpi");
  }
}

struct Case {
  const char* phase;
  int rank;
  const char* how;
  const char* others;
};

class LostRank : public testing::TestWithParam<Case> {};

std::string line_of(const Case& c) {
  return fmt::format("rank {} was lost in phase {}", c.rank, c.phase);
}

TEST_P(LostRank, EndsAllTcpRanks) {
  const Case c = GetParam();
  const auto outcomes =
      run_together(torchrun_commands(3, {"lose", c.phase, std::to_string(c.rank), c.how, c.others}), kLimit);
  for (int r = 0; r < 3; ++r) {
    const Outcome& outcome = outcomes[static_cast<size_t>(r)];
    EXPECT_FALSE(outcome.timed_out) << r;
    EXPECT_NE(outcome.status, 0) << r;
    EXPECT_LT(outcome.seconds, 15.0) << r;
    if (r == c.rank) continue;
    EXPECT_NE(outcome.output.find(line_of(c)), std::string::npos) << r << ": " << outcome.output;
  }
}

TEST_P(LostRank, EndsAllMpiRanks) {
  if (const char* reason = why_no_mpi()) GTEST_SKIP() << reason;
  const Case c = GetParam();
  const auto outcomes =
      run_together(mpirun_command(3, {"lose", c.phase, std::to_string(c.rank), c.how, c.others}), kLimit);
  EXPECT_FALSE(outcomes[0].timed_out) << outcomes[0].output;
  EXPECT_NE(outcomes[0].status, 0);
  EXPECT_GE(count_of(outcomes[0].output, line_of(c)), 1u) << outcomes[0].output;
}

INSTANTIATE_TEST_SUITE_P(Phases, LostRank,
                         testing::Values(Case{"load", 1, "kill", "waiting"}, Case{"prefill", 2, "kill", "waiting"},
                                         Case{"decode", 0, "kill", "waiting"}, Case{"decode", 1, "kill", "blocked"},
                                         Case{"load", 0, "exit", "blocked"}, Case{"prefill", 1, "error", "waiting"},
                                         Case{"decode", 2, "throw", "blocked"}),
                         [](const auto& tested) {
                           return fmt::format("{}_{}_{}_{}", tested.param.phase, tested.param.rank, tested.param.how,
                                              tested.param.others);
                         });

// --- Meetings that fail ----------------------------------------------------------------------------------------------

std::string all_output(const std::vector<Outcome>& outcomes) {
  std::string text;
  for (const Outcome& outcome : outcomes) {
    EXPECT_EQ(outcome.status, 2) << outcome.output;
    EXPECT_FALSE(outcome.timed_out);
    text += outcome.output;
  }
  return text;
}

TEST(Meeting, NamesTheRanksThatDoNotCome) {
  auto commands = torchrun_commands(5, {"check"});
  commands.erase(commands.begin() + 3);
  commands.erase(commands.begin() + 1);
  for (Command& command : commands) command.environment["OPEN_TIMEOUT_S"] = "2";
  const std::string output = all_output(run_together(commands, kLimit));
  EXPECT_EQ(count_of(output, "2 of 5 ranks did not come within 2 s: missing 1, 3"), 3u) << output;
}

TEST(Meeting, SaysWhenRankZeroIsNotThere) {
  auto commands = torchrun_commands(2, {"check"});
  commands.erase(commands.begin());
  commands[0].environment["OPEN_TIMEOUT_S"] = "1";
  const std::string output = all_output(run_together(commands, kLimit));
  EXPECT_NE(output.find("rank 1 found no rank 0 at 127.0.0.1 port"), std::string::npos) << output;
}

TEST(Meeting, TurnsAwayAnotherWorldSize) {
  auto commands = torchrun_commands(3, {"check"});
  commands[2].environment["WORLD_SIZE"] = "4";
  for (Command& command : commands) command.environment["OPEN_TIMEOUT_S"] = "10";
  const std::string output = all_output(run_together(commands, kLimit));
  EXPECT_EQ(count_of(output, "ranks do not agree on their number"), 3u) << output;
}

TEST(Meeting, TurnsAwayTheSameRankTwice) {
  auto commands = torchrun_commands(3, {"check"});
  commands[2].environment["RANK"] = "1";
  for (Command& command : commands) command.environment["OPEN_TIMEOUT_S"] = "10";
  const std::string output = all_output(run_together(commands, kLimit));
  EXPECT_EQ(count_of(output, "two processes came as rank 1"), 3u) << output;
}

TEST(Meeting, NamesAPortInUse) {
  auto listener = parallel::Listener::open("127.0.0.1", 0);
  ASSERT_TRUE(listener) << listener.error().message;
  auto commands = torchrun_commands(2, {"check"});
  for (Command& command : commands) {
    command.environment["MASTER_PORT"] = std::to_string(listener->port());
    command.environment["OPEN_TIMEOUT_S"] = "5";
  }
  const auto outcomes = run_together({commands[0]}, kLimit);
  EXPECT_EQ(outcomes[0].status, 2);
  EXPECT_NE(outcomes[0].output.find("Address already in use"), std::string::npos) << outcomes[0].output;
  EXPECT_NE(outcomes[0].output.find(std::to_string(listener->port())), std::string::npos);
}

}  // namespace
}  // namespace quadrille::multi
