// SPDX-License-Identifier: Apache-2.0
// Starts several processes with environments of their own and waits for all, with a limit that kills them.
#pragma once

#include <chrono>
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

// All are started before the first is waited for.
std::vector<Outcome> run_together(const std::vector<Command>& commands, std::chrono::seconds limit);

bool on_path(const std::string& program);

}  // namespace quadrille::multi
