// SPDX-License-Identifier: Apache-2.0
// The spellings of a 4-bit weight q in -8..7: uint4b8 (q + 8, checkpoints), two's complement (our layouts), and the
// unified code of the vllm path (index into a table of negative multiples, and a sign). Eight nibbles a word, nibble j
// in bits 4j..4j+3.
#pragma once

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::numerics {

inline constexpr int kNibblesPerWord = 8;

QD_HD constexpr uint32_t nibble(uint32_t word, int j) {
  return (word >> (4 * j)) & 15u;
}

QD_HD constexpr int q_of_uint4b8(uint32_t u) {
  return static_cast<int>(u & 15u) - 8;
}
QD_HD constexpr uint32_t uint4b8_of_q(int q) {
  return static_cast<uint32_t>(q + 8) & 15u;
}

QD_HD constexpr int q_of_int4(uint32_t v) {
  return static_cast<int>((v & 15u) ^ 8u) - 8;
}
QD_HD constexpr uint32_t int4_of_q(int q) {
  return static_cast<uint32_t>(q) & 15u;
}

// All eight nibbles of a word between uint4b8 and two's complement; its own inverse.
QD_HD constexpr uint32_t flip_uint4b8_word(uint32_t word) {
  return word ^ 0x88888888u;
}

// Two's complement nibble -> unified code: 0 and 8..15 stay, 1..7 become 8 - v. Its own inverse.
QD_HD constexpr uint32_t unified_of_int4(uint32_t v) {
  v &= 15u;
  return v >= 1 && v <= 7 ? 8 - v : v;
}

// The same for all eight nibbles of a word.
QD_HD constexpr uint32_t unified_of_int4_word(uint32_t word) {
  // Per nibble: for a positive value the low three bits are negated modulo 8 (8 - v for v in 1..7, 0 stays 0).
  const uint32_t low = word & 0x77777777u;
  const uint32_t negated = (0x88888888u - low) & 0x77777777u;
  const uint32_t negative = ((word >> 3) & 0x11111111u) * 15u;
  return (word & negative) | (negated & ~negative);
}

// Unified code -> q. Code 0 with positive sign is q = 0 (its table entry is the -8 multiple, its byte 0x80: see
// group_scale.h).
QD_HD constexpr int q_of_unified(uint32_t code) {
  return q_of_int4(unified_of_int4(code));
}

// Eight values q[0..7] -> a word of two's complement nibbles.
QD_HD constexpr uint32_t pack_int4(const int8_t* q) {
  uint32_t word = 0;
  for (int j = 0; j < kNibblesPerWord; ++j) word |= int4_of_q(q[j]) << (4 * j);
  return word;
}

// The reverse: word -> q[0..7].
QD_HD constexpr void unpack_int4(uint32_t word, int8_t* q) {
  for (int j = 0; j < kNibblesPerWord; ++j) q[j] = static_cast<int8_t>(q_of_int4(nibble(word, j)));
}

// Four codes of one byte each (byte b in bits 8b..) -> four two's complement nibbles, in bits 0..15.
QD_HD constexpr uint32_t int4_of_bytes(uint32_t bytes) {
  uint32_t x = bytes & 0x0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0xffffu;
}
// Whether all four bytes lie in -8..7: q + 8 a byte, without a carry between bytes, has no high nibble.
QD_HD constexpr bool bytes_are_int4(uint32_t bytes) {
  const uint32_t plus8 = ((bytes & 0x7f7f7f7fu) + 0x08080808u) ^ (bytes & 0x80808080u);
  return (plus8 & 0xf0f0f0f0u) == 0;
}

}  // namespace quadrille::numerics
