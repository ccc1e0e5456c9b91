// SPDX-License-Identifier: Apache-2.0
// What the command line of quadrille_bench says.
#pragma once

#include <string>
#include <vector>

#include "bench/ceilings.h"

namespace quadrille::bench {

struct BenchOptions {
  bool layer = false;        // the MoE layer instead of single products
  std::string table;         // empty: the best that runs
  std::vector<int> threads;  // empty: one a core, and one
  int rounds = 7;
  std::vector<int64_t> rows;  // empty: all that the report has; of the layer: tokens
  std::string only;
  std::string json;  // file
  bool profile = false;
  Clock clock = wall_seconds;

  bool wants(int64_t number) const;
  bool wants(const std::string& name) const { return name.find(only) != std::string::npos; }
};

extern const char* const kBenchUsage;
// False: not understood.
bool parse_options(int argc, char** argv, BenchOptions* options);

}  // namespace quadrille::bench
