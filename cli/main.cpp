// SPDX-License-Identifier: Apache-2.0
// The program `quadrille`. No exception leaves main: what a command does not expect is reported as a fault of ours.
#include <cstdio>
#include <exception>
#include <new>

#include "cli/program.h"

int main(int argc, char** argv) {
  try {
    return quadrille::cli::run_program(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("quadrille: out of memory; free some, or ask for less (--cache-tokens, --batch)\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quadrille: internal error (please report it): %s\n", error.what());
  } catch (...) {
    std::fputs("quadrille: internal error of unknown kind (please report it)\n", stderr);
  }
  return quadrille::cli::kExitFailure;
}
