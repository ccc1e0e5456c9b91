// SPDX-License-Identifier: Apache-2.0
// The arithmetic of what is reported: the floor that ceilings set for a piece of work, how far from it a time is, where
// the fraction of the floor falls from one number of rows to the next, and what each table is asked to reach.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "bench/ceilings.h"

namespace quadrille::bench {

// What must be done at least. Zero: nothing of that kind.
struct Work {
  double bytes = 0;       // read once
  double operations = 0;  // two for a product and its sum
  double weights = 0;     // decoded once; only where the ceiling of decoding counts (8 lanes)
};

// Ceilings in units of Work a second. Zero: no such limit, whatever the work.
struct Limits {
  double read = 0;
  double dot = 0;
  double decode = 0;
};

enum class Bound { kRead, kDot, kDecode };
const char* bound_name(Bound bound);

// The time that no code goes below: the largest of the three quotients.
double floor_seconds(const Work& work, const Limits& limits);
// Which of them is the largest; the first of equal ones.
Bound bound_of(const Work& work, const Limits& limits);
// floor / time.
double floor_fraction(const Work& work, const Limits& limits, double seconds);

// The largest relative fall from one fraction to the next: 1 - next / before; nothing where there are not two, or no
// step goes down.
struct Fall {
  size_t before = 0;  // index of the higher one; the lower is the next
  double share = 0;
};
std::optional<Fall> largest_fall(std::span<const double> fractions);
inline constexpr double kMostFall = 0.10;

// One line of a report: `reached` against `target`.
struct Requirement {
  std::string what;
  double target = 0;
  double reached = 0;
  bool at_most = false;  // the target is an upper bound
  bool passes() const { return at_most ? reached <= target : reached >= target; }
};

// What the grouped product of a table must reach with `rows` rows an expert, and of which ceiling.
struct RowTarget {
  enum class Of { kRead, kDot, kFloor } of;
  double fraction;
};
std::optional<RowTarget> row_target(std::string_view table, int64_t rows);
// What the whole MoE layer must reach of its floor.
std::optional<double> layer_target(DotUnit unit, int64_t tokens);
inline constexpr double kMostVllmTime = 1.10;  // of the time of `exact`
// What a whole model must reach: of the read bandwidth in decode, of the dot peak in prefill.
double decode_target(int64_t context);
double prefill_target(DotUnit unit);

}  // namespace quadrille::bench
