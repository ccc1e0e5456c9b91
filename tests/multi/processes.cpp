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

std::string text_of(const std::string& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

}  // namespace

Processes::Running Processes::start(const Command& command) {
  Running running;
  char name[] = "/tmp/quadrille_ranks_XXXXXX";
  const int file = ::mkostemp(name, O_CLOEXEC | O_APPEND);
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
    ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    ::dup2(file, STDOUT_FILENO);
    ::dup2(file, STDERR_FILENO);
    ::execvpe(arguments[0], arguments.data(), variables.data());
    ::_exit(127);
  }
  ::close(file);
  return running;
}

Processes::Processes(const std::vector<Command>& commands) : begin_(Clock::now()) {
  for (const Command& command : commands) all_.push_back(start(command));
}

Processes::~Processes() {
  for (Running& running : all_) {
    if (running.ended) continue;
    ::kill(-running.pid, SIGKILL);
    int status = 0;
    ::waitpid(running.pid, &status, 0);
    std::remove(running.output_file.c_str());
  }
}

std::string Processes::output(size_t i) const {
  const Running& running = all_[i];
  return running.ended ? running.outcome.output : text_of(running.output_file);
}

void Processes::signal(size_t i, int number) const {
  if (!all_[i].ended) ::kill(all_[i].pid, number);
}

double Processes::seconds() const {
  return std::chrono::duration<double>(Clock::now() - begin_).count();
}

bool Processes::wait_until(const std::function<bool()>& there, std::chrono::seconds limit) {
  const auto end = Clock::now() + limit;
  while (!there()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

void Processes::end(Running& running, int status) const {
  running.ended = true;
  running.outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  running.outcome.seconds = seconds();
  running.outcome.output = text_of(running.output_file);
  std::remove(running.output_file.c_str());
}

std::vector<Outcome> Processes::finish(std::chrono::seconds limit) {
  const auto last = Clock::now() + limit;
  size_t left = all_.size();
  while (left > 0) {
    left = 0;
    for (Running& running : all_) {
      int status = 0;
      if (!running.ended && ::waitpid(running.pid, &status, WNOHANG) == running.pid) end(running, status);
      left += running.ended ? 0 : 1;
      if (running.ended || running.outcome.timed_out || Clock::now() < last) continue;
      running.outcome.timed_out = true;
      ::kill(-running.pid, SIGKILL);
    }
    if (left > 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::vector<Outcome> outcomes;
  for (const Running& running : all_) outcomes.push_back(running.outcome);
  return outcomes;
}

std::vector<Outcome> run_together(const std::vector<Command>& commands, std::chrono::seconds limit) {
  return Processes(commands).finish(limit);
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
