// SPDX-License-Identifier: Apache-2.0
// Rounds of measuring: each probes the ceilings and then runs every variant once, so that what the machine gives in
// that second is in all of them. One for each number of threads.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "bench/verdict.h"
#include "core/arena.h"
#include "kernels/api/table.h"

namespace quadrille::bench {

// One of the things that are timed against each other.
struct Variant {
  std::string name;
  std::function<void(int64_t round, const kernels::KernelContext&)> run;
};

struct Measured {
  std::vector<std::vector<double>> seconds;  // [variants][rounds]
  Limits limits;

  double median_seconds(size_t variant) const { return median(seconds[variant]); }
};

class Rounds {
 public:
  Rounds(int threads, int rounds, Clock clock)
      : pool_(threads), clock_(clock), rounds_(rounds), ceilings_(pool_, clock) {}

  int threads() const { return pool_.num_threads(); }
  // A first turn of every variant warms up and is not counted. Each round then runs each variant `calls` times in a
  // row; rounds are numbered through with the calls. The ceiling of decoding is probed where `decodes`.
  Measured measure(DotUnit unit, bool decodes, int64_t calls, const std::vector<Variant>& variants);
  // Raises the ceilings to what a variant reached with that work.
  void saw(const Work& work, double seconds);
  Limits limits(bool decodes) const;
  const Ceilings& ceilings() const { return ceilings_; }

 private:
  ThreadPool pool_;
  Clock clock_;
  int rounds_;
  Ceilings ceilings_;
  Arena arena_;
};

}  // namespace quadrille::bench
