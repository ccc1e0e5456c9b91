// SPDX-License-Identifier: Apache-2.0
// What a draw of a token is made of, the same on host and device: weights on a grid, so that their sums have the same
// bits in any order, and counter-based random numbers, Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011). A draw is a pure function of (seed, index), so a preempted or reordered
// request draws the same.
#pragma once

#include <cstdint>

#include "numerics/double_math.h"

namespace quadrille::numerics {

// Weights are multiples of 2^-34: sums over up to 2^19 ids are exact in double. What the grid drops is below 6e-11 of
// the best weight.
inline constexpr double kWeightGrid = 0x1p-34;

// e^((logit - max) / temperature) in steps of the grid, rounded down: 2^34 for the best id, 0 where it cannot be drawn.
QD_HD uint64_t weight_steps(float logit, float max, double temperature) {
  const double weight = reproducible_exp((static_cast<double>(logit) - static_cast<double>(max)) / temperature);
  return static_cast<uint64_t>(weight * 0x1p34);
}

struct PhiloxWords {
  uint32_t word[4];
};
QD_HD constexpr PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c0;
    const uint64_t b = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1), a multiple of 2^-53: the draw of token `index` of an answer.
QD_HD constexpr double uniform_draw(uint64_t seed, uint64_t index) {
  const PhiloxWords words = philox4x32_10({{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0}},
                                          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = (uint64_t{words.word[1]} << 32 | words.word[0]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace quadrille::numerics
