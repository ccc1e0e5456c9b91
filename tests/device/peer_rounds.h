// SPDX-License-Identifier: Apache-2.0
// Rounds of reductions that a graph replays without the host: data is a function of seed, rank, round and index, so
// every rank can compute on its own GPU what all ranks together must give.
#pragma once

#include <cstdint>

#include "device/handles.h"

namespace quadrille::testing {

// In device memory, zero at the beginning.
struct RoundState {
  uint32_t round;
  uint32_t differing;    // values, over all rounds
  uint32_t first_round;  // of the first difference that was noted
  uint32_t first_index;
  uint32_t found, expected;  // its bits
};

struct RoundData {
  uint64_t seed = 0;
  int32_t rank = 0;
  int32_t num_ranks = 0;
  int64_t count = 0;
  float* data = nullptr;  // [count]
  bool takes_max = false;
};

// The rank's data of this round: of every kind, NaN, infinities, subnormals and zeros of both signs among it.
void fill_round(const RoundData& p, const RoundState* state, device::Stream stream);
// Waits up to `most_ns`, another time on every rank and in every round.
void delay_round(const RoundData& p, const RoundState* state, uint32_t most_ns, device::Stream stream);
// Compares with the reduction in rank order.
void check_round(const RoundData& p, RoundState* state, device::Stream stream);
void next_round(RoundState* state, device::Stream stream);

}  // namespace quadrille::testing
