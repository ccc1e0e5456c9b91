// SPDX-License-Identifier: Apache-2.0
// Few cases in which every legal pair of values of two factors meets. Deterministic; called once by the conformance
// tests.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace quadrille::testing {

// One value (index) for each factor; kUnset in a partial assignment.
using Assignment = std::vector<int>;
inline constexpr int kUnset = -1;

// False when the values that are set break a rule; unset ones break none.
using Legal = std::function<bool(const Assignment&)>;

struct ValuePair {
  int factor_a, value_a, factor_b, value_b;  // factor_a < factor_b
};

// levels[f]: how many values factor f has. Every returned assignment is complete and legal, and every pair that some
// complete legal assignment holds is in one of them.
std::vector<Assignment> covering_array(std::span<const int> levels, const Legal& legal);

// All pairs that no complete legal assignment holds.
std::vector<ValuePair> illegal_pairs(std::span<const int> levels, const Legal& legal);

}  // namespace quadrille::testing
