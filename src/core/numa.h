// SPDX-License-Identifier: Apache-2.0
// Where threads and memory lie on a machine with several NUMA nodes: which nodes there are, what a choice of the user
// means on them, and a pool whose threads and allocations follow it. Reads /sys and /proc; links no libnuma. The
// command line calls it; docs/threads.md says when which choice pays.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"

namespace quadrille {

// kOff: what the system and tools such as numactl gave. kNode: threads on the cores of one node, memory there while it
// has some. kInterleave: threads over all nodes, pages in turn over all that have memory. kRank: rank r of this machine
// as kNode, on usable node r modulo their number.
enum class NumaMode { kOff, kNode, kInterleave, kRank };

struct NumaChoice {
  NumaMode mode = NumaMode::kOff;
  int node = 0;        // kNode
  int local_rank = 0;  // kRank: among the ranks of this machine
};

// "off", "interleave", "rank", "node=K". kInvalidArgument for another text.
Result<NumaChoice> parse_numa(std::string_view text);

// What the machine and this process look like; tests make their own.
struct NumaNode {
  int number = 0;
  std::vector<int> cpus;  // all of the node
  bool has_memory = true;
};
struct NumaView {
  std::vector<NumaNode> nodes;  // ascending; never empty
  std::vector<int> cpus;        // the affinity of this process
  std::vector<int> memory;      // nodes whose memory its cpuset allows; empty: not known, all
};

// The folder of the nodes, and the status file with Mems_allowed_list. Errors: kInvalidData for a list that cannot be
// read. A kernel without NUMA shows no folder: one node.
struct NumaFiles {
  std::string nodes = "/sys/devices/system/node";
  std::string status = "/proc/self/status";
};
Result<NumaView> read_numa(const NumaFiles& files, const std::vector<int>& affinity);

// What to do. No threads here: bind() says where one of how many goes.
struct NumaPlacement {
  bool binds_threads = false;
  std::vector<std::vector<int>> cpus;  // of each node that takes part, those that this process may use
  enum class Memory { kLocal, kPrefer, kInterleave } memory = Memory::kLocal;
  std::vector<int> memory_nodes;

  int num_cpus() const;
  std::vector<int> all_cpus() const;
  // The cores of the node of thread `thread` of `num_threads`: nodes are filled in order, each with the share of the
  // threads that it has of the cores.
  const std::vector<int>& cpus_of_thread(int thread, int num_threads) const;
};

// kUnsupported for a node that is not there, has no core that this process may use, or no memory that it may use: by
// number, with those that are legal. A machine of one node takes every choice that means that node.
Result<NumaPlacement> plan_numa(const NumaChoice& choice, const NumaView& view);

struct PlacedPool {
  std::unique_ptr<ThreadPool> pool;
  std::vector<std::string> warnings;  // for the user
};

// The system calls, to be refused in tests. Both return 0 or an errno.
struct NumaCalls {
  int (*set_memory_policy)(int mode, const std::vector<int>& nodes);
  int (*bind_thread)(pthread_t thread, const std::vector<int>& cpus);
};
NumaCalls system_numa_calls();

// A pool of `num_threads` (0: the usable cores of the placement), placed. The calling thread is its thread 0: it stays
// on the cores of the placement, any of them, and keeps the memory policy, as do threads that it starts later. kIo
// where the system refuses to bind, or to interleave; where it refuses to prefer a node (containers often do) that is a
// warning: memory then lies where the bound threads touch it first.
Result<PlacedPool> make_placed_pool(int num_threads, const NumaPlacement& placement,
                                    const NumaCalls& calls = system_numa_calls());

// All of it: reads the machine, plans, makes the pool. `off` reads nothing.
Result<PlacedPool> make_placed_pool(int num_threads, const NumaChoice& choice);
// Cores that ranks which are threads of this process share under `choice`.
Result<int> cores_of_choice(const NumaChoice& choice);

}  // namespace quadrille
