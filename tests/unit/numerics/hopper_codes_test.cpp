// SPDX-License-Identifier: Apache-2.0
// Eight codes in a word of the Hopper layout: every value in every place beside every other, both packings, their fast
// forms from nibbles, and the A registers that a thread makes of a word.
#include "numerics/hopper_codes.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <vector>

#include "numerics/hopper_k32.h"

namespace quadrille::numerics {
namespace {

// q[0..3] row r0, q[4..7] row r0 + 8.
using Codes = std::array<int8_t, 8>;

uint32_t nibbles(const int8_t* q) {
  uint32_t word = 0;
  for (int b = 0; b < 4; ++b) word |= int4_of_q(q[b]) << (4 * b);
  return word;
}

// Every pair of values in every pair of places, over two backgrounds, and random words.
std::vector<Codes> samples() {
  std::vector<Codes> all;
  for (const int background : {0, -1}) {
    for (size_t i = 0; i < 8; ++i) {
      for (size_t j = 0; j < i; ++j) {
        for (int pair = 0; pair < 256; ++pair) {
          Codes q;
          q.fill(static_cast<int8_t>(background));
          q[i] = static_cast<int8_t>(pair % 16 - 8);
          q[j] = static_cast<int8_t>(pair / 16 - 8);
          all.push_back(q);
        }
      }
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    Codes q;
    for (int8_t& v : q) v = static_cast<int8_t>(static_cast<int>(random() % 16) - 8);
    all.push_back(q);
  }
  return all;
}

TEST(HopperCodes, ExactPackingComesBack) {
  for (const Codes& q : samples()) {
    Codes back{};
    unpack_exact_word(pack_exact_word(q.data(), q.data() + 4), back.data(), back.data() + 4);
    ASSERT_EQ(back, q);
  }
}

TEST(HopperCodes, VllmPackingComesBack) {
  for (const Codes& q : samples()) {
    Codes back{};
    unpack_vllm_word(pack_vllm_word(q.data(), q.data() + 4), back.data(), back.data() + 4);
    ASSERT_EQ(back, q);
  }
}

TEST(HopperCodes, EveryWordOfEitherPackingIsUsed) {
  // Four bits a code and 32 bits a word: unpack is the inverse on all words, -0 (sign set, m = 0) being -1.
  std::mt19937 random(2);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t word = static_cast<uint32_t>(random());
    Codes q{};
    unpack_exact_word(word, q.data(), q.data() + 4);
    ASSERT_EQ(pack_exact_word(q.data(), q.data() + 4), word);
    unpack_vllm_word(word, q.data(), q.data() + 4);
    ASSERT_EQ(pack_vllm_word(q.data(), q.data() + 4), word);
  }
}

TEST(HopperCodes, PackingFromNibbles) {
  for (const Codes& q : samples()) {
    const uint32_t x0 = nibbles(q.data()), x1 = nibbles(q.data() + 4);
    ASSERT_EQ(pack_exact_int4(x0, x1), pack_exact_word(q.data(), q.data() + 4));
    ASSERT_EQ(pack_vllm_int4(x0, x1), pack_vllm_word(q.data(), q.data() + 4));
    // What lies above the low 16 bits does not matter.
    ASSERT_EQ(pack_exact_int4(x0 | 0xabcd0000u, x1 | 0x98760000u), pack_exact_int4(x0, x1));
    ASSERT_EQ(pack_vllm_int4(x0 | 0xabcd0000u, x1 | 0x98760000u), pack_vllm_int4(x0, x1));
  }
}

TEST(HopperCodes, RegistersAreTheWeightBytes) {
  for (const Codes& q : samples()) {
    const uint32_t word = pack_exact_word(q.data(), q.data() + 4);
    const uint32_t a0 = exact_a0(word), a1 = exact_a1(word);
    for (int b = 0; b < 4; ++b) {
      ASSERT_EQ(a0 >> (8 * b) & 0xffu, exact_weight_code(q[static_cast<size_t>(b)]));
      ASSERT_EQ(a1 >> (8 * b) & 0xffu, exact_weight_code(q[static_cast<size_t>(b + 4)]));
    }
  }
}

TEST(HopperCodes, ZeroCodesAreZeroWords) {
  const Codes zero{};
  EXPECT_EQ(pack_exact_word(zero.data(), zero.data() + 4), 0u);
  EXPECT_EQ(pack_vllm_word(zero.data(), zero.data() + 4), 0u);
}

TEST(HopperCodes, VllmWordSelects) {
  // Selectors of row r0 in the low, of row r0 + 8 in the high half, no nibble above 7; signs at bit 7 and 3 of a byte.
  for (const Codes& q : samples()) {
    const uint32_t word = pack_vllm_word(q.data(), q.data() + 4);
    for (size_t i = 0; i < 8; ++i) {
      ASSERT_EQ(word >> (4 * i) & 7u, int4_of_q(q[i]) & 7u);
      const size_t bit = i < 4 ? 8 * i + 7 : 8 * (i - 4) + 3;
      ASSERT_EQ(word >> bit & 1u, q[i] < 0 ? 1u : 0u);
    }
  }
}

}  // namespace
}  // namespace quadrille::numerics
