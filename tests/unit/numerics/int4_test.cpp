// SPDX-License-Identifier: Apache-2.0
// The spellings of a 4-bit weight: all nibbles, all places in a word, and words seen in the field.
#include <gtest/gtest.h>

#include <random>

#include "numerics/int4.h"

namespace quadrille::numerics {
namespace {

TEST(Int4, EverySpellingOfEveryValue) {
  const uint32_t unified[16] = {0, 7, 6, 5, 4, 3, 2, 1, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int q = -8; q <= 7; ++q) {
    EXPECT_EQ(q_of_uint4b8(uint4b8_of_q(q)), q);
    EXPECT_EQ(q_of_int4(int4_of_q(q)), q);
    EXPECT_EQ(uint4b8_of_q(q) ^ 8u, int4_of_q(q));
    EXPECT_EQ(unified_of_int4(int4_of_q(q)), unified[int4_of_q(q)]);
    EXPECT_EQ(q_of_unified(unified_of_int4(int4_of_q(q))), q);
  }
}

TEST(Int4, WordsConvertNibbleByNibble) {
  std::mt19937 random(1);
  for (int round = 0; round < 10000; ++round) {
    const uint32_t word = static_cast<uint32_t>(random());
    for (int j = 0; j < 8; ++j) {
      ASSERT_EQ(nibble(unified_of_int4_word(word), j), unified_of_int4(nibble(word, j)));
      ASSERT_EQ(nibble(flip_uint4b8_word(word), j), nibble(word, j) ^ 8u);
    }
    ASSERT_EQ(unified_of_int4_word(unified_of_int4_word(word)), word);
    int8_t q[8];
    unpack_int4(word, q);
    ASSERT_EQ(pack_int4(q), word);
  }
}

TEST(Int4, FourBytesToNibbles) {
  for (int place = 0; place < 4; ++place) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      for (const uint32_t others : {0x00u, 0x07u, 0xf8u, 0xffu}) {
        uint32_t bytes = others * 0x01010101u;
        bytes = (bytes & ~(0xffu << (8 * place))) | byte << (8 * place);
        const int q = static_cast<int8_t>(byte);
        ASSERT_EQ(bytes_are_int4(bytes), q >= -8 && q <= 7) << bytes;
        uint32_t expected = 0;
        for (int b = 0; b < 4; ++b) expected |= (bytes >> (8 * b) & 15u) << (4 * b);
        ASSERT_EQ(int4_of_bytes(bytes), expected) << bytes;
      }
    }
  }
  // One bad byte among bad ones stays bad.
  EXPECT_FALSE(bytes_are_int4(0x80808080u));
  EXPECT_FALSE(bytes_are_int4(0xf7f7f7f7u));
}

TEST(Int4, EveryNibbleAtEveryPlaceBesideEveryOther) {
  for (int j = 0; j < 8; ++j) {
    for (uint32_t v = 0; v < 16; ++v) {
      for (uint32_t fill = 0; fill < 16; ++fill) {
        const uint32_t word = (fill * 0x11111111u & ~(15u << (4 * j))) | v << (4 * j);
        ASSERT_EQ(nibble(unified_of_int4_word(word), j), unified_of_int4(v));
      }
    }
  }
}

TEST(Int4, KnownWords) {
  const int8_t q[8] = {0, 1, -1, 7, -8, 3, -4, 2};
  const uint32_t packed = 0xA4B0F798u;  // checkpoint spelling
  EXPECT_EQ(pack_int4(q), 0x2C387F10u);
  EXPECT_EQ(flip_uint4b8_word(packed), 0x2C387F10u);
  EXPECT_EQ(unified_of_int4_word(0x2C387F10u), 0x6C581F70u);
}

}  // namespace
}  // namespace quadrille::numerics
