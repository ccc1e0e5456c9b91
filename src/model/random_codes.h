// SPDX-License-Identifier: Apache-2.0
// Random 4-bit codes without a mean. Codes of -8..7 have one of -0.5: every matrix then adds the same direction to all
// tokens, layer after layer, until their routers choose alike (measured: 19 of 128 experts for 64 tokens, where
// independent choices hit 126). Used by the two makers of random models.
#pragma once

#include <cstdint>

namespace quadrille::model {

// Sixteen nibbles of uint4b8 from a random word: -8 becomes 0, the others stay.
inline uint64_t centred_codes(uint64_t word) {
  const uint64_t any = word | word >> 1 | word >> 2 | word >> 3;
  return word | (~any & 0x1111111111111111ull) << 3;
}

// Mean square of such a code: 2 (1 + 4 + ... + 49) / 16.
inline constexpr float kCentredCodeSquare = 17.5f;

}  // namespace quadrille::model
