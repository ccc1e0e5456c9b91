// SPDX-License-Identifier: Apache-2.0
// The program behind main(): parses, runs one command, turns its outcome into an exit code.
#pragma once

namespace quadrille::cli {

// 0 success, 1 failure, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM.
inline constexpr int kExitFailure = 1, kExitUsage = 2, kExitInterrupted = 130;

int run_program(int argc, char** argv);

}  // namespace quadrille::cli
