// SPDX-License-Identifier: Apache-2.0
#include "parallel/launch.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace quadrille::parallel {
namespace {

constexpr int kMostRanks = 65536;
constexpr int kMostPort = 65535;
constexpr int kSparePorts = 16;

uint64_t hash_of(std::string_view text) {  // FNV-1a
  uint64_t hash = 14695981039346656037ULL;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ULL;
  return hash;
}

class Variables {
 public:
  Variables(const ReadVariable& read, const char* launcher) : read_(read), launcher_(launcher) {}

  bool has(const char* name) const { return read_(name) != nullptr; }
  std::string text(const char* name) const {
    const char* value = read_(name);
    return value != nullptr ? value : "";
  }
  // A whole number from `low` to `high`.
  Result<int> number(const char* name, int low, int high) const {
    const char* value = read_(name);
    if (value == nullptr) {
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: the environment variable {} is missing: a launcher sets it for "
                        "every rank, or set it by hand",
                        launcher_, name);
    }
    const std::string_view view = value;
    int number = 0;
    const auto [end, status] = std::from_chars(view.data(), view.data() + view.size(), number);
    if (status != std::errc() || end != view.data() + view.size() || number < low || number > high) {
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: the environment variable {} is '{}', expected a whole number "
                        "from {} to {}",
                        launcher_, name, view, low, high);
    }
    return number;
  }
  // `fallback` where the variable is not set.
  Result<int> number_or(const char* name, int low, int high, int fallback) const {
    if (!has(name)) return fallback;
    return number(name, low, high);
  }

 private:
  const ReadVariable& read_;
  const char* launcher_;
};

Status read_ranks(const Variables& variables, const char* rank, const char* size, const char* local, Launch& launch) {
  QD_TRY(launch.size, variables.number(size, 1, kMostRanks));
  QD_TRY(launch.rank, variables.number(rank, 0, launch.size - 1));
  QD_TRY(launch.local_rank, variables.number_or(local, 0, launch.size - 1, 0));
  return {};
}

Result<Launch> from_torchrun(const ReadVariable& read) {
  const Variables variables(read, "torchrun's variables");
  Launch launch;
  launch.launcher = Launcher::kTorchrun;
  QD_TRY_STATUS(read_ranks(variables, "RANK", "WORLD_SIZE", "LOCAL_RANK", launch));
  if (launch.size == 1) return launch;
  QD_TRY(launch.local_size, variables.number_or("LOCAL_WORLD_SIZE", 1, launch.size, 1));
  launch.master_host = variables.text("MASTER_ADDR");
  if (launch.master_host.empty()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "torchrun's variables: WORLD_SIZE is {} and the environment variable MASTER_ADDR is missing: the "
                      "host name or address of rank 0",
                      launch.size);
  }
  QD_TRY(launch.master_port, variables.number("MASTER_PORT", 1, kMostPort));
  launch.nonce = hash_of(variables.text("TORCHELASTIC_RUN_ID") + "/" + variables.text("TORCHELASTIC_RESTART_COUNT"));
  // torchrun's agent listens on MASTER_PORT itself and says so: rank 0 takes one of the ports behind it.
  if (variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True") {
    launch.master_port =
        launch.master_port < kMostPort - kSparePorts ? launch.master_port + 1 : launch.master_port - kSparePorts - 1;
    launch.num_ports = kSparePorts;
  }
  return launch;
}

Result<Launch> from_open_mpi(const ReadVariable& read) {
  const Variables variables(read, "mpirun's variables");
  Launch launch;
  launch.launcher = Launcher::kOpenMpi;
  QD_TRY_STATUS(
      read_ranks(variables, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", launch));
  QD_TRY(launch.local_size, variables.number_or("OMPI_COMM_WORLD_LOCAL_SIZE", 1, launch.size, 1));
  return launch;
}

Result<Launch> from_slurm(const ReadVariable& read) {
  const Variables variables(read, "Slurm's variables");
  Launch launch;
  launch.launcher = Launcher::kSlurm;
  // The number of tasks of the step; SLURM_NTASKS may be that of the whole job.
  const char* size = variables.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  QD_TRY_STATUS(read_ranks(variables, "SLURM_PROCID", size, "SLURM_LOCALID", launch));
  if (launch.size == 1) return launch;
  QD_TRY(const int node, variables.number_or("SLURM_NODEID", 0, kMostRanks, 0));
  launch.local_size = std::clamp(number_of_node(variables.text("SLURM_STEP_TASKS_PER_NODE"), node), 1, launch.size);
  launch.master_host = variables.text("MASTER_ADDR");
  if (launch.master_host.empty()) launch.master_host = first_host(variables.text("SLURM_STEP_NODELIST"));
  if (launch.master_host.empty()) launch.master_host = first_host(variables.text("SLURM_JOB_NODELIST"));
  if (launch.master_host.empty()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "Slurm's variables: neither MASTER_ADDR nor SLURM_STEP_NODELIST names the host of rank 0");
  }
  launch.nonce = hash_of(variables.text("SLURM_JOB_ID") + "." + variables.text("SLURM_STEP_ID"));
  // Above the usual services and below the ports that the system hands out.
  QD_TRY(launch.master_port, variables.number_or("MASTER_PORT", 1, kMostPort, 0));
  if (launch.master_port == 0) {
    launch.master_port = 20000 + static_cast<int>(launch.nonce % 700) * kSparePorts;
    launch.num_ports = kSparePorts;
  }
  return launch;
}

}  // namespace

const char* launcher_name(Launcher launcher) {
  switch (launcher) {
    case Launcher::kNone:
      return "none";
    case Launcher::kOpenMpi:
      return "mpirun";
    case Launcher::kTorchrun:
      return "torchrun";
    case Launcher::kSlurm:
      return "slurm";
  }
  return "unknown";
}

int share_of_cores(int own, int launchers, int local_size) {
  return std::clamp(launchers / local_size, 1, std::max(own, 1));
}

int number_of_node(const std::string& numbers, int node) {
  const char* at = numbers.data();
  const char* const end = at + numbers.size();
  while (at < end) {
    int number = 0, nodes = 1;
    const auto first = std::from_chars(at, end, number);
    if (first.ec != std::errc() || number < 0) return 0;
    at = first.ptr;
    if (std::string_view(at, end).starts_with("(x")) {
      const auto second = std::from_chars(at + 2, end, nodes);
      if (second.ec != std::errc() || nodes < 1 || second.ptr == end || *second.ptr != ')') return 0;
      at = second.ptr + 1;
    }
    if (node < nodes) return number;
    node -= nodes;
    if (at < end && *at++ != ',') return 0;
  }
  return 0;
}

std::string first_host(const std::string& node_list) {
  const size_t end = node_list.find_first_of("[,");
  if (end == std::string::npos || node_list[end] == ',') return node_list.substr(0, end);
  const size_t number_end = node_list.find_first_of("-,]", end);
  if (number_end == std::string::npos) return {};
  std::string host = node_list.substr(0, end) + node_list.substr(end + 1, number_end - end - 1);
  // What stands behind the brackets belongs to the name: "n[1-2]-ib".
  const size_t bracket = node_list.find(']', end);
  if (bracket == std::string::npos) return {};
  const size_t tail_end = node_list.find(',', bracket);
  const size_t tail = bracket + 1;
  host += node_list.substr(tail, tail_end == std::string::npos ? std::string::npos : tail_end - tail);
  return host;
}

Result<Launch> detect_launch(const ReadVariable& read) {
  const bool rank = read("RANK") != nullptr;
  const bool size = read("WORLD_SIZE") != nullptr;
  if (rank && size) return from_torchrun(read);
  if (read("OMPI_COMM_WORLD_SIZE") != nullptr) return from_open_mpi(read);
  // SLURM_PROCID is also set in the shell of a batch job, which is no task; the step is what srun adds.
  if (read("SLURM_PROCID") != nullptr && read("SLURM_STEP_ID") != nullptr) return from_slurm(read);
  if (rank || size) return from_torchrun(read);  // names the one that is missing
  return Launch{};
}

Result<Launch> detect_launch() {
  return detect_launch([](const char* name) -> const char* {
    return std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here sets variables
  });
}

}  // namespace quadrille::parallel
