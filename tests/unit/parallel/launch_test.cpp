// SPDX-License-Identifier: Apache-2.0
#include "parallel/launch.h"

#include <gtest/gtest.h>

#include <map>

namespace quadrille::parallel {
namespace {

using Variables = std::map<std::string, std::string>;

Result<Launch> detect(const Variables& variables) {
  return detect_launch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

std::string error_of(const Variables& variables) {
  const auto launch = detect(variables);
  if (launch) return "no error";
  EXPECT_EQ(launch.error().code, ErrorCode::kInvalidArgument);
  return launch.error().message;
}

const Variables kTorchrun = {
    {"RANK", "3"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}, {"MASTER_ADDR", "node7"}, {"MASTER_PORT", "29500"}};

Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}
Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}

TEST(Launch, NothingSetIsOneRank) {
  const auto launch = detect({});
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->launcher, Launcher::kNone);
  EXPECT_EQ(launch->size, 1);
}

TEST(Launch, ReadsTorchrun) {
  const auto launch = detect(kTorchrun);
  ASSERT_TRUE(launch) << launch.error().message;
  EXPECT_EQ(launch->launcher, Launcher::kTorchrun);
  EXPECT_EQ(launch->rank, 3);
  EXPECT_EQ(launch->size, 8);
  EXPECT_EQ(launch->local_rank, 1);
  EXPECT_EQ(launch->master_host, "node7");
  EXPECT_EQ(launch->master_port, 29500);
  EXPECT_EQ(launch->num_ports, 1);
}

TEST(Launch, KnowsHowManyRanksShareTheMachine) {
  const Variables mpi = {{"OMPI_COMM_WORLD_RANK", "5"}, {"OMPI_COMM_WORLD_SIZE", "8"}};
  const Variables slurm = {{"SLURM_PROCID", "7"},
                           {"SLURM_NTASKS", "9"},
                           {"SLURM_JOB_ID", "44"},
                           {"SLURM_STEP_ID", "0"},
                           {"SLURM_STEP_NODELIST", "n[0-3]"},
                           {"SLURM_STEP_TASKS_PER_NODE", "2(x3),3"}};
  const auto local_size = [](const Variables& variables) {
    const auto launch = detect(variables);
    EXPECT_TRUE(launch) << launch.error().message;
    return launch ? launch->local_size : -1;
  };
  EXPECT_EQ(local_size(with(kTorchrun, "LOCAL_WORLD_SIZE", "4")), 4);
  EXPECT_EQ(local_size(with(mpi, "OMPI_COMM_WORLD_LOCAL_SIZE", "2")), 2);
  EXPECT_EQ(local_size(with(slurm, "SLURM_NODEID", "2")), 2);
  EXPECT_EQ(local_size(with(slurm, "SLURM_NODEID", "3")), 3);
  // Nobody says, or the list ends before the node.
  EXPECT_EQ(local_size(kTorchrun), 1);
  EXPECT_EQ(local_size(mpi), 1);
  EXPECT_EQ(local_size(with(slurm, "SLURM_NODEID", "4")), 1);
  EXPECT_NE(error_of(with(kTorchrun, "LOCAL_WORLD_SIZE", "9")).find("LOCAL_WORLD_SIZE is '9'"), std::string::npos);
}

TEST(Launch, FindsTheNumberOfANode) {
  EXPECT_EQ(number_of_node("4", 0), 4);
  EXPECT_EQ(number_of_node("4", 1), 0);
  EXPECT_EQ(number_of_node("2(x3),1,5(x2)", 2), 2);
  EXPECT_EQ(number_of_node("2(x3),1,5(x2)", 3), 1);
  EXPECT_EQ(number_of_node("2(x3),1,5(x2)", 5), 5);
  for (const char* bad : {"", "x", "2(x", "2(x3", "2(x0),1", "2;1", "-2"}) EXPECT_EQ(number_of_node(bad, 1), 0) << bad;
}

TEST(Launch, RanksOfAMachineShareItsCores) {
  EXPECT_EQ(share_of_cores(64, 64, 8), 8);
  EXPECT_EQ(share_of_cores(64, 64, 1), 64);
  EXPECT_EQ(share_of_cores(7, 7, 2), 3);
  EXPECT_EQ(share_of_cores(2, 2, 5), 1);
  // Bound by the launcher: each to its own 4 of 64; two of four ranks to each half; one core each.
  EXPECT_EQ(share_of_cores(4, 64, 8), 4);
  EXPECT_EQ(share_of_cores(32, 64, 4), 16);
  EXPECT_EQ(share_of_cores(1, 2, 2), 1);
}

TEST(Launch, GoesBesideThePortOfTorchrunsAgent) {
  const auto launch = detect(with(kTorchrun, "TORCHELASTIC_USE_AGENT_STORE", "True"));
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->master_port, 29501);
  EXPECT_GT(launch->num_ports, 1);
  const auto high = detect(with(with(kTorchrun, "TORCHELASTIC_USE_AGENT_STORE", "True"), "MASTER_PORT", "65535"));
  ASSERT_TRUE(high);
  EXPECT_LT(high->master_port + high->num_ports, 65536);
}

TEST(Launch, NamesWhatIsMissingOrWrong) {
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    const std::string text = error_of(without(kTorchrun, name));
    EXPECT_NE(text.find(name), std::string::npos) << text;
    EXPECT_NE(text.find("missing"), std::string::npos) << text;
  }
  for (const char* value : {"", "three", "3x", "-1", "8", "99999999999999999999", " 3"}) {
    const std::string text = error_of(with(kTorchrun, "RANK", value));
    EXPECT_NE(text.find(fmt::format("RANK is '{}', expected a whole number from 0 to 7", value)), std::string::npos)
        << text;
  }
  EXPECT_NE(error_of(with(kTorchrun, "WORLD_SIZE", "0")).find("WORLD_SIZE is '0'"), std::string::npos);
  EXPECT_NE(error_of(with(kTorchrun, "MASTER_PORT", "65536")).find("from 1 to 65535"), std::string::npos);
  EXPECT_NE(error_of(with(kTorchrun, "LOCAL_RANK", "8")).find("LOCAL_RANK"), std::string::npos);
}

TEST(Launch, OneRankNeedsNoMaster) {
  const auto launch = detect({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  ASSERT_TRUE(launch) << launch.error().message;
  EXPECT_EQ(launch->size, 1);
}

const Variables kMpirun = {
    {"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}};

TEST(Launch, ReadsMpirun) {
  const auto launch = detect(kMpirun);
  ASSERT_TRUE(launch) << launch.error().message;
  EXPECT_EQ(launch->launcher, Launcher::kOpenMpi);
  EXPECT_EQ(launch->rank, 1);
  EXPECT_EQ(launch->size, 4);
  // A lone RANK that a shell left behind does not hide mpirun; both of torchrun's variables are meant.
  EXPECT_EQ(detect(with(kMpirun, "RANK", "0"))->launcher, Launcher::kOpenMpi);
  Variables both = kMpirun;
  both.insert(kTorchrun.begin(), kTorchrun.end());
  EXPECT_EQ(detect(both)->launcher, Launcher::kTorchrun);
  EXPECT_NE(error_of(without(kMpirun, "OMPI_COMM_WORLD_RANK")).find("OMPI_COMM_WORLD_RANK"), std::string::npos);
}

const Variables kSlurm = {{"SLURM_PROCID", "5"},    {"SLURM_NTASKS", "8"},  {"SLURM_LOCALID", "1"},
                          {"SLURM_JOB_ID", "4711"}, {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", "gpu[03-06]"}};

TEST(Launch, ReadsSlurm) {
  const auto launch = detect(kSlurm);
  ASSERT_TRUE(launch) << launch.error().message;
  EXPECT_EQ(launch->launcher, Launcher::kSlurm);
  EXPECT_EQ(launch->rank, 5);
  EXPECT_EQ(launch->size, 8);
  EXPECT_EQ(launch->master_host, "gpu03");
  EXPECT_GE(launch->master_port, 20000);
  EXPECT_LT(launch->master_port + launch->num_ports, 32768);
  // Every rank of a step finds the same port; another step may not.
  EXPECT_EQ(detect(with(kSlurm, "SLURM_PROCID", "0"))->master_port, launch->master_port);
  EXPECT_NE(detect(with(kSlurm, "SLURM_STEP_ID", "1"))->nonce, launch->nonce);
  EXPECT_EQ(detect(with(kSlurm, "MASTER_ADDR", "head"))->master_host, "head");
  EXPECT_EQ(detect(with(kSlurm, "MASTER_PORT", "12345"))->master_port, 12345);
}

TEST(Launch, TheShellOfABatchJobIsOneRank) {
  const auto launch = detect(without(kSlurm, "SLURM_STEP_ID"));
  ASSERT_TRUE(launch);
  EXPECT_EQ(launch->launcher, Launcher::kNone);
}

TEST(Launch, FirstHostOfANodeList) {
  EXPECT_EQ(first_host("n7"), "n7");
  EXPECT_EQ(first_host("n7,n8"), "n7");
  EXPECT_EQ(first_host("n[7-9]"), "n7");
  EXPECT_EQ(first_host("n[007,9],m1"), "n007");
  EXPECT_EQ(first_host("m1,n[7-9]"), "m1");
  EXPECT_EQ(first_host("n[1-2]-ib,x"), "n1-ib");
  EXPECT_EQ(first_host(""), "");
  EXPECT_EQ(first_host("n["), "");
}

}  // namespace
}  // namespace quadrille::parallel
