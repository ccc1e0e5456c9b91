// SPDX-License-Identifier: Apache-2.0
// Starts several processes with environments of their own, looks at them while they run, signals them, and waits for
// all, with a limit that kills them.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace quadrille::multi {

struct Command {
  std::vector<std::string> arguments;              // the program first, looked for on PATH
  std::map<std::string, std::string> environment;  // added to this process's; launcher variables are taken out first
};

struct Outcome {
  int status = 0;          // exit status, or 128 + signal
  bool timed_out = false;  // it was killed at the limit
  std::string output;      // stdout and stderr together
  double seconds = 0;
};

// Started together; the object's end kills what still runs.
class Processes {
 public:
  explicit Processes(const std::vector<Command>& commands);
  ~Processes();
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;

  pid_t pid(size_t i) const { return all_[i].pid; }
  // stdout and stderr together, so far.
  std::string output(size_t i) const;
  void signal(size_t i, int number) const;
  // True when `there` came true in time; looks every few milliseconds.
  static bool wait_until(const std::function<bool()>& there, std::chrono::seconds limit);
  // Waits for all, with a limit that kills them. Seconds count from the start.
  std::vector<Outcome> finish(std::chrono::seconds limit);
  double seconds() const;  // since the start

 private:
  struct Running {
    pid_t pid = -1;
    std::string output_file;
    bool ended = false;
    Outcome outcome;
  };
  static Running start(const Command& command);
  void end(Running& running, int status) const;

  std::vector<Running> all_;
  std::chrono::steady_clock::time_point begin_;
};

std::vector<Outcome> run_together(const std::vector<Command>& commands, std::chrono::seconds limit);

bool on_path(const std::string& program);

}  // namespace quadrille::multi
