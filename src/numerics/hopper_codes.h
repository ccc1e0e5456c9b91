// SPDX-License-Identifier: Apache-2.0
// How eight 4-bit weights lie in one word of the Hopper layout, and what a thread makes of it: two A registers, four
// e4m3 bytes each (byte b = k b of the word), one for row r0 and one for row r0 + 8.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/int4.h"

namespace quadrille::numerics {

// `exact`: q as sign and three bits, m = q for q >= 0 and |q| - 1 below; e4m3 bytes 0x00..0x08 are linear, so the byte
// of q * 2^-9 is (sign << 7 | m) + sign. Row r0: sign at bit 8b + 7, m at 8b..8b+2; row r0 + 8: sign at bit 8b + 3 and
// m at 8b..8b+2, both in the word rotated left by 4.
QD_HD constexpr uint32_t exact_code(int q) {
  return q < 0 ? 8u | static_cast<uint32_t>(-q - 1) : static_cast<uint32_t>(q);
}
QD_HD constexpr uint32_t rotate_left(uint32_t x, int bits) {
  return x << bits | x >> (32 - bits);
}
QD_HD constexpr uint32_t exact_half(const int8_t* q) {
  uint32_t word = 0;
  for (int b = 0; b < 4; ++b) {
    const uint32_t code = exact_code(q[b]);
    word |= ((code & 8u) << 4 | (code & 7u)) << (8 * b);
  }
  return word;
}
// q0[4]: row r0, q1[4]: row r0 + 8, k ascending.
QD_HD constexpr uint32_t pack_exact_word(const int8_t* q0, const int8_t* q1) {
  return exact_half(q0) | rotate_left(exact_half(q1), 28);
}
// The A registers of a word: e4m3 bytes of q * 2^-9.
QD_HD constexpr uint32_t exact_a_register(uint32_t half) {
  return (half & 0x87878787u) + ((half & 0x80808080u) >> 7);
}
QD_HD constexpr uint32_t exact_a0(uint32_t word) {
  return exact_a_register(word);
}
QD_HD constexpr uint32_t exact_a1(uint32_t word) {
  return exact_a_register(rotate_left(word, 4));
}

// `vllm`: two's complement nibbles, index (low three bits) and sign apart: the index of row r0, k b, in bits 4b..4b+2,
// of row r0 + 8 in bits 16+4b..; the sign of row r0 at bit 8b + 7, of row r0 + 8 at bit 8b + 3.
QD_HD constexpr uint32_t pack_vllm_word(const int8_t* q0, const int8_t* q1) {
  uint32_t word = 0;
  for (int b = 0; b < 4; ++b) {
    word |= (int4_of_q(q0[b]) & 7u) << (4 * b) | (int4_of_q(q1[b]) & 7u) << (16 + 4 * b);
    word |= (q0[b] < 0 ? 0x80u : 0u) << (8 * b) | (q1[b] < 0 ? 0x08u : 0u) << (8 * b);
  }
  return word;
}

// Both packings from two's complement nibbles: the low 16 bits of `x0` are four codes of row r0, of `x1` those of row
// r0 + 8, k ascending from bit 0.
QD_HD constexpr uint32_t spread_nibbles(uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}
QD_HD constexpr uint32_t exact_half_of_int4(uint32_t x) {
  const uint32_t spread = spread_nibbles(x & 0xffffu);
  const uint32_t sign = spread & 0x08080808u;
  // -q - 1 of a negative q is its complement: the low three bits are flipped by 7 = 8 - 1 where the sign is set.
  return sign << 4 | ((spread ^ (sign - (sign >> 3))) & 0x07070707u);
}
QD_HD constexpr uint32_t pack_exact_int4(uint32_t x0, uint32_t x1) {
  return exact_half_of_int4(x0) | rotate_left(exact_half_of_int4(x1), 28);
}
QD_HD constexpr uint32_t pack_vllm_int4(uint32_t x0, uint32_t x1) {
  const uint32_t index = (x0 & 0x7777u) | (x1 & 0x7777u) << 16;
  return index | spread_nibbles(x0 & 0x8888u) << 4 | spread_nibbles(x1 & 0x8888u);
}

// The reverse of both packings: q0[4], q1[4].
QD_HD constexpr void unpack_exact_word(uint32_t word, int8_t* q0, int8_t* q1) {
  for (int b = 0; b < 4; ++b) {
    const uint32_t a = word >> (8 * b);
    const uint32_t c = rotate_left(word, 4) >> (8 * b);
    q0[b] = static_cast<int8_t>((a & 0x80u) != 0 ? -static_cast<int>(a & 7u) - 1 : static_cast<int>(a & 7u));
    q1[b] = static_cast<int8_t>((c & 0x80u) != 0 ? -static_cast<int>(c & 7u) - 1 : static_cast<int>(c & 7u));
  }
}
QD_HD constexpr void unpack_vllm_word(uint32_t word, int8_t* q0, int8_t* q1) {
  for (int b = 0; b < 4; ++b) {
    q0[b] = static_cast<int8_t>(q_of_int4((word >> (4 * b) & 7u) | (word >> (8 * b + 7) & 1u) << 3));
    q1[b] = static_cast<int8_t>(q_of_int4((word >> (16 + 4 * b) & 7u) | (word >> (8 * b + 3) & 1u) << 3));
  }
}

}  // namespace quadrille::numerics
