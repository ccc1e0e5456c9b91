// SPDX-License-Identifier: Apache-2.0
// The program as several ranks: commands as torchrun, Slurm and mpirun start them, folders of a model for each rank,
// and a way to hold a rank in its load. Used by lost_rank_test and launch_test.
#pragma once

#include <string>
#include <vector>

#include "e2e/program.h"
#include "multi/processes.h"

namespace quadrille::testing {

enum class Launcher { kTorchrun, kSlurm, kMpirun };
const char* launcher_name(Launcher launcher);

// Why this machine cannot start ranks that way, or null.
const char* why_not(Launcher launcher);

// One rank of a launch: quadrille ARGUMENTS. mpirun: a single command that starts all.
std::vector<multi::Command> rank_commands(Launcher launcher, const std::vector<std::vector<std::string>>& arguments);
// The same arguments on every rank.
std::vector<multi::Command> rank_commands(Launcher launcher, int ranks, const std::vector<std::string>& arguments);

// The process of a rank; -1 when there is none (yet).
pid_t rank_pid(Launcher launcher, const multi::Processes& processes, int rank);
bool is_running(pid_t pid);

// FOLDER/NAME with the files of `model`: the weights copied, so that one rank's can be held or damaged.
std::string copy_model(const TemporaryFolder& folder, const std::string& name, const std::string& model);
std::string weights_of(const std::string& model_folder);

// Whoever opens the file waits in open() until release() (the kernel's leases; at most 45 s).
class HeldFile {
 public:
  explicit HeldFile(const std::string& path);
  ~HeldFile();
  HeldFile(const HeldFile&) = delete;
  HeldFile& operator=(const HeldFile&) = delete;

  // False where the file system has no leases.
  bool holds() const { return holds_; }
  bool somebody_waits() const;
  void release();
  // After release(): nobody has the file open any more.
  bool nobody_reads() const;

 private:
  int descriptor_ = -1;
  bool holds_ = false;
};

}  // namespace quadrille::testing
