// SPDX-License-Identifier: Apache-2.0
// The numbers of random models, on the CPU and on a device.
#pragma once

#include <cmath>
#include <cstdint>

namespace quadrille::model {

// splitmix64: a counter run through a mixer.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// Uniform on [-1, 1), from the low 16 bits; its standard deviation is 1 / sqrt(3).
inline float uniform(uint64_t bits) {
  return static_cast<float>(static_cast<int16_t>(bits & 0xffff)) * 0x1p-15f;
}

// Of the weights of a product with k in features whose outputs are as large as its inputs.
inline float deviation_for(int64_t k) {
  return 1.0f / std::sqrt(static_cast<float>(k));
}

// Random 4-bit codes without a mean. Codes of -8..7 have one of -0.5: every matrix then adds the same direction to all
// tokens, layer after layer, until their routers choose alike (measured: 19 of 128 experts for 64 tokens, where
// independent choices hit 126).

// Sixteen nibbles of uint4b8 from a random word: -8 becomes 0, the others stay.
inline uint64_t centred_codes(uint64_t word) {
  const uint64_t any = word | word >> 1 | word >> 2 | word >> 3;
  return word | (~any & 0x1111111111111111ull) << 3;
}

// Mean square of such a code: 2 (1 + 4 + ... + 49) / 16.
inline constexpr float kCentredCodeSquare = 17.5f;

}  // namespace quadrille::model
