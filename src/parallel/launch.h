// SPDX-License-Identifier: Apache-2.0
// Which launcher started this process, and as which rank of how many: read from the environment variables that mpirun,
// torchrun and Slurm set. Decides nothing about how ranks then meet (rendezvous.h) and opens no connection.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/result.h"

namespace quadrille::parallel {

enum class Launcher { kNone, kOpenMpi, kTorchrun, kSlurm };
const char* launcher_name(Launcher launcher);

struct Launch {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this machine: which GPU is its own
  int local_size = 1;  // ranks of this machine; 1 where the launcher does not say
  // Where rank 0 waits for the others; empty and 0 under mpirun, where MPI itself connects them. Rank 0 takes the first
  // free one of `num_ports` ports.
  std::string master_host;
  int master_port = 0;
  int num_ports = 1;
  uint64_t nonce = 0;  // of this run, so that two runs on one port do not mix
};

// The value of an environment variable, null when it is not set.
using ReadVariable = std::function<const char*(const char* name)>;

// In this order: RANK and WORLD_SIZE (torchrun, or set by hand), Open MPI's, Slurm's inside of a step (srun); none of
// them is one rank. kInvalidArgument names the variable that is missing, is no number, or does not fit the others.
Result<Launch> detect_launch(const ReadVariable& read);
Result<Launch> detect_launch();

// Threads for one of `local_size` ranks of a machine, so that together they have one a core: `own` are the cores that
// this process may use, `launchers` those of the process that started it. Ranks that were bound each to cores of its
// own keep these; ranks that share a mask share its cores. At least 1.
int share_of_cores(int own, int launchers, int local_size);

// The first host of a Slurm node list: "n[03-07,9],m1" is n03. Empty when it has none.
std::string first_host(const std::string& node_list);

// Entry `node` of a Slurm list of numbers: 2 is that of nodes 0 to 2 in "2(x3),1". 0 when it has none.
int number_of_node(const std::string& numbers, int node);

}  // namespace quadrille::parallel
