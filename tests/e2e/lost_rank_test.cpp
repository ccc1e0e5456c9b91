// SPDX-License-Identifier: Apache-2.0
// A rank of the program that is lost in each phase, by a killed process or a failed thread: every process ends within
// seconds, with a failure, and a line names rank and phase. And ranks that are told to stop, or stand still.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "e2e/rank_runs.h"

namespace quadrille::testing {
namespace {

using multi::Processes;
using std::chrono::seconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr seconds kLimit{30};     // that of the promise
constexpr double kExpected = 10;  // what it takes at the most on a busy machine, seconds

class Ranks : public ::testing::Test {
 protected:
  void SetUp() override {
    model = abacus_path("w4a8");
    if (model.empty()) GTEST_SKIP() << kNoAbacus;
  }

  // An answer of many tokens on the slowest table: some seconds when nobody stops it.
  static std::vector<std::string> long_run(const std::string& folder) {
    return {"run", folder,      "Tell me.", "--max-tokens", "1900", "--ignore-eos",
            "-q",  "--kernels", "ref",      "--threads",    "1"};
  }
  // Every rank's command over a folder of its own, and its weights held.
  std::vector<std::vector<std::string>> own_folders(int ranks) {
    std::vector<std::vector<std::string>> arguments;
    for (int r = 0; r < ranks; ++r) {
      const std::string own = copy_model(folder, std::to_string(r), model);
      held.push_back(std::make_unique<HeldFile>(weights_of(own)));
      arguments.push_back(long_run(own));
    }
    return arguments;
  }
  bool holds() const {
    return std::all_of(held.begin(), held.end(), [](const auto& file) { return file->holds(); });
  }
  // The rank goes on to its first step, where it waits for the one that is still held.
  void let_into_prefill(size_t rank) {
    held[rank]->release();
    ASSERT_TRUE(Processes::wait_until([&] { return held[rank]->nobody_reads(); }, kLimit));
    ::usleep(500'000);  // from the end of the load to the first step: milliseconds
  }
  // A process that mpirun killed may outlive mpirun by a moment.
  static bool ends(pid_t process) {
    return Processes::wait_until([&] { return !is_running(process); }, seconds(5));
  }
  static std::string all_output(const std::vector<multi::Outcome>& outcomes) {
    std::string text;
    for (const auto& outcome : outcomes) text += outcome.output;
    return text;
  }

  std::string model;
  TemporaryFolder folder;
  std::vector<std::unique_ptr<HeldFile>> held;
};

struct Case {
  const char* phase;
  int killed;
};

// --- Killed processes ------------------------------------------------------------------------------------------------

class KilledRank : public Ranks, public ::testing::WithParamInterface<std::tuple<Launcher, Case>> {
 protected:
  void SetUp() override {
    Ranks::SetUp();
    if (const char* reason = why_not(launcher())) GTEST_SKIP() << reason;
  }
  static Launcher launcher() { return std::get<0>(GetParam()); }
  static Case lost() { return std::get<1>(GetParam()); }

  // Brings the rank into its phase; the other one is in another.
  void reach(const Processes& processes) {
    if (std::string(lost().phase) == "decode") {
      const auto prints = [&] { return processes.output(0).size() > 4; };
      ASSERT_TRUE(Processes::wait_until(prints, kLimit)) << processes.output(0);
      return;
    }
    const auto all_wait = [&] {
      return std::all_of(held.begin(), held.end(), [](const auto& file) { return file->somebody_waits(); });
    };
    ASSERT_TRUE(Processes::wait_until(all_wait, kLimit)) << processes.output(0);
    if (std::string(lost().phase) == "prefill") let_into_prefill(static_cast<size_t>(lost().killed));
  }
};

TEST_P(KilledRank, EndsEveryProcessAndIsNamedWithItsPhase) {
  const auto arguments = own_folders(2);
  if (!holds()) GTEST_SKIP() << "needs a file system with leases: " << folder.path();
  if (std::string(lost().phase) == "decode") held.clear();
  Processes processes(rank_commands(launcher(), arguments));
  reach(processes);
  const pid_t victim = rank_pid(launcher(), processes, lost().killed);
  const pid_t other = rank_pid(launcher(), processes, 1 - lost().killed);
  ASSERT_GT(victim, 1);
  ASSERT_GT(other, 1);
  const double begin = processes.seconds();
  ::kill(victim, SIGKILL);
  const auto outcomes = processes.finish(kLimit);
  for (const auto& outcome : outcomes) {
    EXPECT_FALSE(outcome.timed_out);
    EXPECT_NE(outcome.status, 0);
    EXPECT_LT(outcome.seconds - begin, kExpected);
  }
  EXPECT_TRUE(ends(victim));
  EXPECT_TRUE(ends(other));
  const std::string line = fmt::format("quadrille: rank {} was lost in phase {}: ", lost().killed, lost().phase);
  EXPECT_THAT(all_output(outcomes), HasSubstr(line));
}

INSTANTIATE_TEST_SUITE_P(, KilledRank,
                         ::testing::Combine(::testing::Values(Launcher::kTorchrun, Launcher::kMpirun),
                                            ::testing::Values(Case{"load", 1}, Case{"prefill", 1}, Case{"prefill", 0},
                                                              Case{"decode", 1}, Case{"decode", 0})),
                         [](const auto& tested) {
                           const Case& c = std::get<1>(tested.param);
                           return fmt::format("{}_{}_{}", launcher_name(std::get<0>(tested.param)), c.phase, c.killed);
                         });

// The others wait in a collective for it, or have another's loss to name: three ranks.
TEST_F(Ranks, ARankKilledInItsLoadIsNamedByThoseThatWaitForItAndThoseThatDoNot) {
  const auto arguments = own_folders(3);
  if (!holds()) GTEST_SKIP() << "needs a file system with leases: " << folder.path();
  Processes processes(rank_commands(Launcher::kTorchrun, arguments));
  for (const auto& file : held) {
    ASSERT_TRUE(Processes::wait_until([&] { return file->somebody_waits(); }, kLimit));
  }
  let_into_prefill(0);
  processes.signal(1, SIGKILL);
  const auto outcomes = processes.finish(kLimit);
  for (const size_t r : {0, 2}) {
    EXPECT_EQ(outcomes[r].status, 1) << outcomes[r].output;
    EXPECT_THAT(outcomes[r].output, HasSubstr("quadrille: rank 1 was lost in phase load: "));
  }
}

// --- Failed threads and failing processes ----------------------------------------------------------------------------

// Makes one weight scale of gate_proj's second half no number: rank 1 alone reads that half.
void damage_second_half(const std::string& path) {
  std::string file = read_text(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  const auto header = parse_json(file.substr(8, header_bytes));
  const auto& tensor = header.at("model.layers.1.mlp.experts.3.gate_proj.weight_scale");
  ASSERT_EQ(tensor["dtype"], "BF16");
  const uint64_t last = 8 + header_bytes + tensor["data_offsets"][1].get<uint64_t>() - 2;
  file[last] = static_cast<char>(0xc0);
  file[last + 1] = 0x7f;
  write_text(path, file);
}

TEST_F(Ranks, AThreadThatCannotLoadItsShardEndsTheProgram) {
  const std::string own = copy_model(folder, "damaged", model);
  damage_second_half(weights_of(own));
  RunOptions options;
  options.timeout_seconds = 30;
  auto arguments = long_run(own);
  arguments.insert(arguments.end(), {"--tp", "2"});
  const Outcome outcome = run_program(arguments, options);
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_LT(outcome.seconds, kExpected);
  EXPECT_THAT(outcome.err, HasSubstr("quadrille: rank 1 in phase load: "));
  EXPECT_THAT(outcome.err, HasSubstr("model.layers.1.mlp.experts.3.gate_proj.weight_scale"));
}

TEST_F(Ranks, AProcessThatCannotLoadItsShardEndsAll) {
  const std::string own = copy_model(folder, "damaged", model);
  damage_second_half(weights_of(own));
  const auto outcomes = multi::run_together(rank_commands(Launcher::kTorchrun, 2, long_run(own)), kLimit);
  EXPECT_EQ(outcomes[0].status, 1);
  EXPECT_EQ(outcomes[1].status, 1);
  EXPECT_THAT(outcomes[0].output, HasSubstr("quadrille: rank 1 was lost in phase load: "));
  EXPECT_THAT(outcomes[0].output, HasSubstr("gate_proj.weight_scale")) << "why is said, too";
  EXPECT_THAT(outcomes[1].output, HasSubstr("quadrille: rank 1 in phase load: "));
}

struct Fault {
  const char* phase;
  int rank;
  const char* how;
  const char* others;
  bool processes;
};

class FailedRank : public Ranks, public ::testing::WithParamInterface<Fault> {
 protected:
  static std::vector<multi::Command> commands(const Fault& fault, const std::string& model) {
    const std::string size = fault.processes ? "1" : "3";
    auto all = rank_commands(Launcher::kTorchrun, fault.processes ? 3 : 1, {});
    for (auto& command : all) {
      command.arguments = {QD_RANK_FAULT, model,       size, fault.phase, std::to_string(fault.rank),
                           fault.how,     fault.others};
    }
    return all;
  }
};

TEST_P(FailedRank, EndsEveryProcessAndIsNamedWithItsPhase) {
  const Fault fault = GetParam();
  const auto outcomes = multi::run_together(commands(fault, model), kLimit);
  for (size_t r = 0; r < outcomes.size(); ++r) {
    EXPECT_FALSE(outcomes[r].timed_out);
    EXPECT_EQ(outcomes[r].status, 1) << outcomes[r].output;
    EXPECT_LT(outcomes[r].seconds, kExpected);
    const std::string own = fmt::format("quadrille: rank {} in phase {}: ", fault.rank, fault.phase);
    const std::string others = fmt::format("quadrille: rank {} was lost in phase {}: ", fault.rank, fault.phase);
    EXPECT_THAT(outcomes[r].output, AnyOf(HasSubstr(own), HasSubstr(others)));
    EXPECT_THAT(outcomes[r].output, AnyOf(HasSubstr("on purpose"), HasSubstr("out of memory")));
  }
}

INSTANTIATE_TEST_SUITE_P(
    , FailedRank,
    ::testing::Values(Fault{"load", 0, "throw", "waiting", false}, Fault{"prefill", 1, "error", "waiting", false},
                      Fault{"prefill", 2, "no_memory", "waiting", false}, Fault{"decode", 0, "error", "waiting", false},
                      Fault{"decode", 2, "throw", "waiting", false}, Fault{"decode", 1, "error", "blocked", false},
                      Fault{"prefill", 1, "throw", "waiting", true}, Fault{"decode", 0, "no_memory", "blocked", true}),
    [](const auto& tested) {
      return fmt::format("{}_{}_{}_{}_{}", tested.param.processes ? "processes" : "threads", tested.param.phase,
                         tested.param.rank, tested.param.how, tested.param.others);
    });

// --- Told to stop ----------------------------------------------------------------------------------------------------

TEST_F(Ranks, CtrlCStopsThreadsInOrder) {
  RunOptions options;
  options.send_signal = SIGINT;
  options.signal_after_bytes = 4;
  options.timeout_seconds = 60;
  auto arguments = long_run(model);
  arguments.insert(arguments.end(), {"--tp", "2"});
  const Outcome outcome = run_program(arguments, options);
  EXPECT_EXIT_CODE(outcome, 130);
  EXPECT_EQ(outcome.signal, 0);
  EXPECT_THAT(outcome.err, HasSubstr("stopped on request"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("lost")));
}

// What a terminal does (all ranks), and what a person does (one of them): the ranks agree on the step.
TEST_F(Ranks, CtrlCOfAnyRankStopsAllProcessesInOrder) {
  for (const bool of_all : {true, false}) {
    SCOPED_TRACE(of_all);
    Processes processes(rank_commands(Launcher::kTorchrun, 2, long_run(model)));
    ASSERT_TRUE(Processes::wait_until([&] { return processes.output(0).size() > 4; }, kLimit));
    const double begin = processes.seconds();
    processes.signal(1, of_all ? SIGINT : SIGTERM);
    if (of_all) {
      processes.signal(0, SIGINT);
      processes.signal(1, SIGINT);  // torchrun sends another one behind that of the terminal
    }
    for (const auto& outcome : processes.finish(kLimit)) {
      EXPECT_EQ(outcome.status, 130) << outcome.output;
      EXPECT_LT(outcome.seconds - begin, kExpected);
      EXPECT_THAT(outcome.output, HasSubstr("stopped on request"));
      EXPECT_THAT(outcome.output, Not(HasSubstr("lost")));
    }
  }
}

TEST_F(Ranks, CtrlCOfMpirunStopsAll) {
  if (const char* reason = why_not(Launcher::kMpirun)) GTEST_SKIP() << reason;
  Processes processes(rank_commands(Launcher::kMpirun, 2, long_run(model)));
  ASSERT_TRUE(Processes::wait_until([&] { return processes.output(0).size() > 4; }, kLimit));
  const pid_t ranks[] = {rank_pid(Launcher::kMpirun, processes, 0), rank_pid(Launcher::kMpirun, processes, 1)};
  const double begin = processes.seconds();
  processes.signal(0, SIGINT);
  const auto outcomes = processes.finish(kLimit);
  EXPECT_NE(outcomes[0].status, 0);
  EXPECT_LT(outcomes[0].seconds - begin, kExpected);
  for (const pid_t rank : ranks) EXPECT_TRUE(ends(rank));
}

// The rank waits for one that is still in its load, so it cannot agree on anything.
TEST_F(Ranks, ARankThatCannotStopInTimeNamesItselfAndIsNamed) {
  const auto arguments = own_folders(2);
  if (!holds()) GTEST_SKIP() << "needs a file system with leases: " << folder.path();
  Processes processes(rank_commands(Launcher::kTorchrun, arguments));
  for (const auto& file : held) {
    ASSERT_TRUE(Processes::wait_until([&] { return file->somebody_waits(); }, kLimit));
  }
  let_into_prefill(1);
  const double begin = processes.seconds();
  processes.signal(1, SIGTERM);
  const auto outcomes = processes.finish(kLimit);
  EXPECT_EQ(outcomes[1].status, 130);
  EXPECT_THAT(outcomes[1].output, HasSubstr("quadrille: rank 1 of 2 ended by SIGTERM in phase prefill"));
  EXPECT_EQ(outcomes[0].status, 1);
  EXPECT_THAT(outcomes[0].output, HasSubstr("quadrille: rank 1 was lost in phase prefill: it was ended by SIGTERM"));
  for (const auto& outcome : outcomes) EXPECT_LT(outcome.seconds - begin, kExpected);
}

// A process that stands still is not lost: the others wait, and go on with it.
TEST_F(Ranks, AStoppedProcessIsWaitedFor) {
  std::vector<std::string> arguments = {"run", model,       "Tell me.", "--max-tokens", "600", "--ignore-eos",
                                        "-q",  "--threads", "1"};
  Processes processes(rank_commands(Launcher::kTorchrun, 2, arguments));
  ASSERT_TRUE(Processes::wait_until([&] { return processes.output(0).size() > 4; }, kLimit));
  processes.signal(1, SIGSTOP);
  ::usleep(300'000);
  const std::string before = processes.output(0);
  ::usleep(1'000'000);
  EXPECT_TRUE(is_running(processes.pid(0)));
  EXPECT_EQ(processes.output(0), before);
  processes.signal(1, SIGCONT);
  const auto outcomes = processes.finish(seconds(60));
  EXPECT_EQ(outcomes[0].status, 0) << outcomes[0].output;
  EXPECT_EQ(outcomes[1].status, 0) << outcomes[1].output;
  arguments.insert(arguments.end(), {"--tp", "2"});
  EXPECT_EQ(outcomes[0].output, run_program(arguments).out);
}

}  // namespace
}  // namespace quadrille::testing
