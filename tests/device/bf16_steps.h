// SPDX-License-Identifier: Apache-2.0
// mma.sync and wgmma in bf16 beside each other: the tiles of a prefill use one, single tokens the other, and a token's
// bits must not tell which.
#pragma once

#include <cstdint>

#include "device/handles.h"

namespace quadrille::testing {

// What the numbers are like.
enum class Bf16Numbers : int {
  kNearOne,
  kWide,     // exponents over 2^70
  kAnyBits,  // NaN, infinities and subnormals, too
  kCancelling,
  kSubnormal,
  kSparse,  // three of four are a zero of either sign
  kOverflowing,
  kTiny,  // products are subnormal
  kCount
};

// Values that differ, of `blocks` random key blocks of 128 dimensions and 64 query rows each.
struct Bf16StepDifferences {
  uint64_t compared;   // scores
  uint64_t scores;     // of wgmma, k contiguous
  uint64_t reordered;  // scores of mma.sync with the halves of each step exchanged
  uint64_t values;     // of wgmma, n contiguous
  uint64_t norms;      // of wgmma with a chunk of ones behind the values
};
void compare_bf16_steps(Bf16Numbers numbers, uint64_t seed, int blocks, Bf16StepDifferences* result,
                        device::Stream stream);

}  // namespace quadrille::testing
