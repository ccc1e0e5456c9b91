// SPDX-License-Identifier: Apache-2.0
#include "core/numa.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <cerrno>

#include "core/topology.h"
#include "file_tree.h"

namespace quadrille {
namespace {

using Memory = NumaPlacement::Memory;
using Lists = std::vector<std::vector<int>>;

std::vector<int> cpus(const char* list) {
  return *parse_cpu_list(list);
}

// Two sockets of four cores with two threads each, and a memory expander without cores.
class TwoSockets : public ::testing::Test {
 protected:
  void SetUp() override {
    tree.write("node/online", "0-2\n");
    tree.write("node/has_memory", "0-2\n");
    tree.write("node/node0/cpulist", "0-3,8-11\n");
    tree.write("node/node1/cpulist", "4-7,12-15\n");
    tree.write("node/node2/cpulist", "\n");
    tree.write("status", "Name:\tx\nMems_allowed:\t7\nMems_allowed_list:\t0-2\n");
  }
  NumaView view(const char* affinity = "0-15") const {
    auto read = read_numa({tree.path("node"), tree.path("status")}, cpus(affinity));
    EXPECT_TRUE(read) << (read ? "" : read.error().message);
    return read ? *read : NumaView{{{0, {0}, true}}, {0}, {}};
  }
  static std::string refusal(const NumaChoice& choice, const NumaView& view) {
    const auto plan = plan_numa(choice, view);
    if (plan) return "not refused";
    EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
    return plan.error().message;
  }
  FileTree tree;
};

TEST(NumaChoice, HasFourForms) {
  EXPECT_EQ(parse_numa("off")->mode, NumaMode::kOff);
  EXPECT_EQ(parse_numa("interleave")->mode, NumaMode::kInterleave);
  EXPECT_EQ(parse_numa("rank")->mode, NumaMode::kRank);
  EXPECT_EQ(parse_numa("node=12")->mode, NumaMode::kNode);
  EXPECT_EQ(parse_numa("node=12")->node, 12);
  for (const char* text : {"", "on", "node", "node=", "node=-1", "node=1x", "node= 1", "node=99999999999", "Node=1"}) {
    const auto choice = parse_numa(text);
    ASSERT_FALSE(choice) << text;
    EXPECT_EQ(choice.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(choice.error().message, fmt::format("'{}': expected off, interleave, rank or node=K", text));
  }
}

TEST_F(TwoSockets, OffPlansNothing) {
  const auto plan = plan_numa({}, view());
  ASSERT_TRUE(plan);
  EXPECT_FALSE(plan->binds_threads);
  EXPECT_EQ(plan->memory, Memory::kLocal);
}

TEST_F(TwoSockets, ANodeTakesItsCoresThatAreAllowed) {
  auto plan = plan_numa({NumaMode::kNode, 1}, view());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->cpus, Lists{cpus("4-7,12-15")});
  EXPECT_EQ(plan->memory, Memory::kPrefer);
  EXPECT_EQ(plan->memory_nodes, std::vector<int>{1});
  EXPECT_EQ(plan->num_cpus(), 8);
  plan = plan_numa({NumaMode::kNode, 1}, view("0-5"));
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->cpus, Lists{cpus("4-5")});
}

TEST_F(TwoSockets, InterleaveTakesAllMemoryAndSpreadsThreadsByCores) {
  auto plan = plan_numa({NumaMode::kInterleave}, view());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->cpus, (Lists{cpus("0-3,8-11"), cpus("4-7,12-15")}));
  EXPECT_EQ(plan->memory, Memory::kInterleave);
  EXPECT_EQ(plan->memory_nodes, (std::vector<int>{0, 1, 2}));
  for (const int threads : {2, 4, 16, 32}) {
    for (int i = 0; i < threads; ++i) {
      EXPECT_EQ(plan->cpus_of_thread(i, threads), plan->cpus[i < threads / 2 ? 0 : 1]) << i << " of " << threads;
    }
  }
  EXPECT_EQ(plan->cpus_of_thread(0, 1), plan->cpus[0]);
  // Six cores of one node and two of the other: three threads of four are on the first.
  plan = plan_numa({NumaMode::kInterleave}, view("0-5,8-9"));
  ASSERT_TRUE(plan);
  std::vector<int> on_first;
  for (int i = 0; i < 4; ++i) on_first.push_back(plan->cpus_of_thread(i, 4) == plan->cpus[0] ? 1 : 0);
  EXPECT_EQ(on_first, (std::vector<int>{1, 1, 1, 0}));
}

TEST_F(TwoSockets, RanksTakeUsableNodesInTurn) {
  for (int rank = 0; rank < 5; ++rank) {
    const auto plan = plan_numa({NumaMode::kRank, 0, rank}, view());
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->memory_nodes, std::vector<int>{rank % 2});
  }
  // A launcher that binds each rank to a socket leaves one node to choose.
  EXPECT_EQ(plan_numa({NumaMode::kRank, 0, 0}, view("12-15"))->memory_nodes, std::vector<int>{1});
}

TEST_F(TwoSockets, RefusalsNameWhatIsLegal) {
  EXPECT_EQ(refusal({NumaMode::kNode, 3}, view()), "--numa node=3: this machine has nodes 0-2");
  EXPECT_EQ(refusal({NumaMode::kNode, 2}, view()), "--numa node=2: node 2 has no cores; legal here: nodes 0-1");
  EXPECT_EQ(
      refusal({NumaMode::kNode, 0}, view("4-7")),
      "--numa node=0: its cores 0-3,8-11 are not among those that this process may use (4-7); legal here: node 1");
  tree.write("status", "x\nMems_allowed_list:\t1\n");
  EXPECT_EQ(refusal({NumaMode::kNode, 0}, view()),
            "--numa node=0: this process may use memory of 1 alone (its cpuset); legal here: node 1");
  EXPECT_EQ(refusal({NumaMode::kRank}, view("0-3")),
            "--numa node=0: this process may use memory of 1 alone (its cpuset); use --numa off");
}

TEST_F(TwoSockets, NodesWithoutMemoryAreNoPlaceForIt) {
  tree.write("node/has_memory", "1\n");
  EXPECT_EQ(refusal({NumaMode::kNode, 0}, view()), "--numa node=0: node 0 has no memory; legal here: node 1");
  const auto plan = plan_numa({NumaMode::kInterleave}, view());
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->cpus.size(), 2U);         // its cores still work
  EXPECT_EQ(plan->memory, Memory::kLocal);  // there is one place alone
  EXPECT_EQ(plan_numa({NumaMode::kRank, 0, 1}, view())->memory_nodes, std::vector<int>{1});
}

TEST_F(TwoSockets, FilesThatCannotBeReadAreNamed) {
  tree.write("node/node1/cpulist", "4-x\n");
  const auto read = read_numa({tree.path("node"), tree.path("status")}, cpus("0-15"));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, ErrorCode::kInvalidData);
  EXPECT_NE(read.error().message.find("node1/cpulist: '4-x'"), std::string::npos) << read.error().message;
}

TEST_F(TwoSockets, WithoutNodesThereIsOneOfAllCores) {
  const auto read = read_numa({tree.path("none"), tree.path("none")}, cpus("0-3"));
  ASSERT_TRUE(read);
  for (const NumaChoice& choice :
       {NumaChoice{NumaMode::kNode, 0}, NumaChoice{NumaMode::kInterleave}, {NumaMode::kRank}}) {
    const auto plan = plan_numa(choice, *read);
    ASSERT_TRUE(plan);
    EXPECT_EQ(plan->cpus, Lists{cpus("0-3")});
    EXPECT_EQ(plan->memory, Memory::kLocal);  // no system call is needed
  }
  EXPECT_EQ(refusal({NumaMode::kNode, 1}, *read), "--numa node=1: this machine has node 0");
}

int refuse_policy(int, const std::vector<int>&) {
  return EPERM;
}
int accept_policy(int, const std::vector<int>&) {
  return 0;
}
int refuse_bind(pthread_t, const std::vector<int>&) {
  return EPERM;
}
int accept_bind(pthread_t, const std::vector<int>&) {
  return 0;
}

TEST_F(TwoSockets, ARefusedPreferenceIsAWarningAndARefusedInterleaveAnError) {
  const auto on_node = plan_numa({NumaMode::kNode, 1}, view());
  const auto over_all = plan_numa({NumaMode::kInterleave}, view());
  ASSERT_TRUE(on_node && over_all);
  auto made = make_placed_pool(2, *on_node, {refuse_policy, accept_bind});
  ASSERT_TRUE(made);
  ASSERT_EQ(made->warnings.size(), 1U);
  EXPECT_EQ(made->warnings[0],
            "--numa: the system refused to prefer memory on node 1 (Operation not permitted; a container needs the "
            "capability SYS_NICE for it): it lies where the threads, which are bound, touch it first");
  made = make_placed_pool(2, *over_all, {refuse_policy, accept_bind});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::kIo);
  EXPECT_NE(made.error().message.find("refused to interleave memory on nodes 0-2"), std::string::npos);
  made = make_placed_pool(2, *on_node, {accept_policy, refuse_bind});
  ASSERT_FALSE(made);
  EXPECT_NE(made.error().message.find("refused to bind a thread to cores 4-7,12-15"), std::string::npos);
  made = make_placed_pool(3, *on_node, {accept_policy, accept_bind});
  ASSERT_TRUE(made);
  EXPECT_TRUE(made->warnings.empty());
  EXPECT_EQ(made->pool->num_threads(), 3);
}

// On this machine, whatever it has: in a thread of its own, which stays bound.
TEST(NumaOfThisMachine, ThreadsRunWhereTheyAreBound) {
  std::jthread([] {
    const auto view = read_numa({}, allowed_cpus());
    ASSERT_TRUE(view) << view.error().message;
    auto plan = plan_numa({NumaMode::kRank}, *view);
    if (!plan) GTEST_SKIP() << plan.error().message;
    plan->cpus[0] = {plan->cpus[0].back()};
    plan->memory = Memory::kPrefer;  // asked for even where there is one node
    if (plan->memory_nodes.empty()) plan->memory_nodes = {view->nodes[0].number};
    const auto made = make_placed_pool(3, *plan);
    ASSERT_TRUE(made) << made.error().message;
    std::vector<int> core(64, -1), policy(64, -1);
    made->pool->run(64, [&](int64_t part) {
      core[static_cast<size_t>(part)] = ::sched_getcpu();
      ::syscall(SYS_get_mempolicy, &policy[static_cast<size_t>(part)], nullptr, 0, nullptr, 0);
    });
    EXPECT_EQ(core, std::vector<int>(64, plan->cpus[0][0]));
    // MPOL_PREFERRED, inherited by all; a machine that refuses it says so.
    EXPECT_EQ(policy, std::vector<int>(64, made->warnings.empty() ? 1 : 0));
  }).join();
}

TEST(NumaOfThisMachine, EveryChoiceThatFitsMakesAPool) {
  std::jthread([] {
    for (const NumaChoice& choice : {NumaChoice{}, {NumaMode::kInterleave}, {NumaMode::kRank, 0, 3}}) {
      const auto made = make_placed_pool(0, choice);
      if (!made) continue;  // a machine that refuses; its texts are tested above
      EXPECT_GE(made->pool->num_threads(), 1);
      EXPECT_LE(made->pool->num_threads(), usable_cores());
      EXPECT_GE(*cores_of_choice(choice), made->pool->num_threads());
    }
  }).join();
}

}  // namespace
}  // namespace quadrille
