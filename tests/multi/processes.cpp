// SPDX-License-Identifier: Apache-2.0
#include "multi/processes.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <thread>

namespace quadrille::multi {
namespace {

using Clock = std::chrono::steady_clock;

struct Running {
  pid_t pid = -1;
  std::string output_file;
  bool ended = false;
  Outcome outcome;
};

bool is_launcher_variable(const std::string& name) {
  for (const char* prefix : {"OMPI_", "PMIX_", "SLURM_", "TORCHELASTIC_", "MASTER_"}) {
    if (name.starts_with(prefix)) return true;
  }
  return name == "RANK" || name == "WORLD_SIZE" || name == "LOCAL_RANK";
}

std::vector<std::string> environment_of(const Command& command) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (!is_launcher_variable(name) && command.environment.count(name) == 0) all.push_back(text);
  }
  for (const auto& [name, value] : command.environment) all.push_back(name + "=" + value);
  return all;
}

Running start(const Command& command) {
  Running running;
  char name[] = "/tmp/quadrille_ranks_XXXXXX";
  const int file = ::mkostemp(name, O_CLOEXEC);
  running.output_file = name;
  const std::vector<std::string> environment = environment_of(command);
  std::vector<char*> arguments, variables;
  for (const auto& a : command.arguments) arguments.push_back(const_cast<char*>(a.c_str()));
  for (const auto& v : environment) variables.push_back(const_cast<char*>(v.c_str()));
  arguments.push_back(nullptr);
  variables.push_back(nullptr);
  running.pid = ::fork();
  if (running.pid == 0) {
    ::setpgid(0, 0);  // so that the limit reaches what it starts, too
    ::dup2(file, STDOUT_FILENO);
    ::dup2(file, STDERR_FILENO);
    ::execvpe(arguments[0], arguments.data(), variables.data());
    ::_exit(127);
  }
  ::close(file);
  return running;
}

void finish(Running& running, int status, Clock::time_point begin) {
  running.ended = true;
  running.outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  running.outcome.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  std::stringstream text;
  text << std::ifstream(running.output_file).rdbuf();
  running.outcome.output = text.str();
  std::remove(running.output_file.c_str());
}

}  // namespace

std::vector<Outcome> run_together(const std::vector<Command>& commands, std::chrono::seconds limit) {
  const auto begin = Clock::now();
  std::vector<Running> all;
  for (const Command& command : commands) all.push_back(start(command));
  size_t left = all.size();
  while (left > 0) {
    for (Running& running : all) {
      int status = 0;
      if (running.ended || ::waitpid(running.pid, &status, WNOHANG) != running.pid) continue;
      finish(running, status, begin);
      --left;
    }
    for (Running& running : all) {
      if (running.ended || running.outcome.timed_out || Clock::now() - begin < limit) continue;
      running.outcome.timed_out = true;
      ::kill(-running.pid, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::vector<Outcome> outcomes;
  for (Running& running : all) outcomes.push_back(std::move(running.outcome));
  return outcomes;
}

bool on_path(const std::string& program) {
  std::stringstream path(::getenv("PATH") != nullptr ? ::getenv("PATH") : "");
  std::string folder;
  while (std::getline(path, folder, ':')) {
    if (::access((folder + "/" + program).c_str(), X_OK) == 0) return true;
  }
  return false;
}

}  // namespace quadrille::multi
