// SPDX-License-Identifier: Apache-2.0
#include "e2e/rank_runs.h"

#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace quadrille::testing {
namespace {

// A port of the range below those that the system hands out, different for each launch of this process.
int next_port() {
  static int count = 0;
  return 12000 + (::getpid() * 41 + count++) % 8000;
}

// The name of this machine where it can be looked up, as Slurm would give it.
std::string host_to_meet_at() {
  char name[256] = {};
  addrinfo* found = nullptr;
  if (::gethostname(name, sizeof name - 1) != 0 || ::getaddrinfo(name, nullptr, nullptr, &found) != 0) {
    return "127.0.0.1";
  }
  ::freeaddrinfo(found);
  return name;
}

std::vector<std::string> with_program(const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {program_path()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

std::map<std::string, std::string> variables_of(Launcher launcher, int rank, int size, int port) {
  const std::string r = std::to_string(rank), n = std::to_string(size);
  if (launcher == Launcher::kTorchrun) {
    return {{"RANK", r},
            {"WORLD_SIZE", n},
            {"LOCAL_RANK", r},
            {"MASTER_ADDR", "127.0.0.1"},
            {"MASTER_PORT", std::to_string(port)}};
  }
  return {{"SLURM_PROCID", r},    {"SLURM_NTASKS", n},
          {"SLURM_LOCALID", r},   {"SLURM_JOB_ID", std::to_string(port)},
          {"SLURM_STEP_ID", "0"}, {"SLURM_STEP_NODELIST", host_to_meet_at()}};
}

std::string read_small(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

bool is_child(const std::string& process, pid_t parent) {
  const std::string stat = read_small(process + "/stat");
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return false;
  std::istringstream rest(stat.substr(name_end + 1));
  std::string state;
  pid_t found = -1;
  rest >> state >> found;
  return found == parent && state != "Z";
}

}  // namespace

const char* launcher_name(Launcher launcher) {
  if (launcher == Launcher::kMpirun) return "mpirun";
  return launcher == Launcher::kTorchrun ? "torchrun" : "slurm";
}

const char* why_not(Launcher launcher) {
  if (launcher != Launcher::kMpirun) return nullptr;
  if (!multi::on_path("mpirun")) return "mpirun is not installed (openmpi-bin)";
  const std::filesystem::path module = std::filesystem::path(program_path()).parent_path() / "libquadrille_mpi.so";
  return std::filesystem::exists(module) ? nullptr : "this build has no MPI module (libopenmpi-dev)";
}

std::vector<multi::Command> rank_commands(Launcher launcher, const std::vector<std::vector<std::string>>& arguments) {
  const int size = static_cast<int>(arguments.size());
  if (launcher == Launcher::kMpirun) {
    multi::Command command;
    command.arguments = {"mpirun", "--oversubscribe", "--allow-run-as-root"};
    for (int r = 0; r < size; ++r) {
      if (r > 0) command.arguments.emplace_back(":");
      command.arguments.insert(command.arguments.end(), {"-n", "1"});
      for (const std::string& word : with_program(arguments[r])) command.arguments.push_back(word);
    }
    return {command};
  }
  const int port = next_port();
  std::vector<multi::Command> commands;
  for (int r = 0; r < size; ++r) {
    commands.push_back({with_program(arguments[r]), variables_of(launcher, r, size, port)});
  }
  return commands;
}

std::vector<multi::Command> rank_commands(Launcher launcher, int ranks, const std::vector<std::string>& arguments) {
  return rank_commands(launcher, std::vector<std::vector<std::string>>(static_cast<size_t>(ranks), arguments));
}

pid_t rank_pid(Launcher launcher, const multi::Processes& processes, int rank) {
  if (launcher != Launcher::kMpirun) return processes.pid(static_cast<size_t>(rank));
  const std::string variable = "OMPI_COMM_WORLD_RANK=" + std::to_string(rank);
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    if (!is_child(entry.path().string(), processes.pid(0))) continue;
    const std::string environment = '\0' + read_small(entry.path().string() + "/environ");
    if (environment.find('\0' + variable + '\0') != std::string::npos) return std::stoi(name);
  }
  return -1;
}

bool is_running(pid_t pid) {
  const std::string stat = read_small("/proc/" + std::to_string(pid) + "/stat");
  const size_t name_end = stat.rfind(')');
  return name_end != std::string::npos && stat.substr(name_end, 3) != ") Z";
}

std::string copy_model(const TemporaryFolder& folder, const std::string& name, const std::string& model) {
  const std::string path = folder / name;
  std::filesystem::create_directory(path);
  for (const auto& entry : std::filesystem::directory_iterator(model)) {
    const auto target = std::filesystem::path(path) / entry.path().filename();
    if (entry.path().extension() == ".safetensors") {
      std::filesystem::copy(entry.path(), target);
    } else {
      std::filesystem::create_symlink(std::filesystem::absolute(entry.path()), target);
    }
  }
  return path;
}

std::string weights_of(const std::string& model_folder) {
  return model_folder + "/model.safetensors";
}

HeldFile::HeldFile(const std::string& path) {
  ::signal(SIGIO, SIG_IGN);  // how the kernel says that somebody waits
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  holds_ = descriptor_ >= 0 && ::fcntl(descriptor_, F_SETLEASE, F_WRLCK) == 0;
}

HeldFile::~HeldFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

bool HeldFile::somebody_waits() const {
  return ::fcntl(descriptor_, F_GETLEASE) != F_WRLCK;
}

void HeldFile::release() {
  ::fcntl(descriptor_, F_SETLEASE, F_UNLCK);
}

bool HeldFile::nobody_reads() const {
  if (::fcntl(descriptor_, F_SETLEASE, F_WRLCK) != 0) return false;
  ::fcntl(descriptor_, F_SETLEASE, F_UNLCK);
  return true;
}

}  // namespace quadrille::testing
