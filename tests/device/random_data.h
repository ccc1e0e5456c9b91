// SPDX-License-Identifier: Apache-2.0
// Random weights, scales, biases and activations as functions of seed and index, the same bits on host and device: the
// device fills whole stacks (fill.h), the host makes the few experts and tokens that a comparison needs.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bf16.h"
#include "numerics/bits.h"

namespace quadrille::testing {

// The finaliser of splitmix64 over a counter.
QD_HD constexpr uint64_t hash(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// What a matrix consists of; each has its own stream of numbers.
enum class Part : uint64_t { kCodes = 1, kScales = 2, kBias = 3 };
inline constexpr int kGate = 0, kUp = 1, kDown = 2;
inline constexpr int64_t kSharedExpert = 1 << 20;

QD_HD constexpr uint64_t matrix_seed(uint64_t seed, int64_t expert, int matrix, Part part) {
  return hash(hash(hash(seed, static_cast<uint64_t>(expert)), static_cast<uint64_t>(matrix)),
              static_cast<uint64_t>(part));
}

// Eight uint4b8 codes, word `index` of the matrix.
QD_HD constexpr uint32_t code_word(uint64_t seed, int64_t index) {
  return static_cast<uint32_t>(hash(seed, static_cast<uint64_t>(index)) >> 16);
}
// Code `index` of the matrix as a number, -8..7.
QD_HD constexpr int8_t code_value(uint64_t seed, int64_t index) {
  return static_cast<int8_t>(static_cast<int>(code_word(seed, index / 8) >> (index % 8 * 4) & 15u) - 8);
}

// A bf16 group scale: log-uniform from 2^-12 to 2^-5; one in sixteen negative, one in 256 each zero, 2^-60, subnormal.
QD_HD constexpr uint16_t scale_bits(uint64_t seed, int64_t index) {
  const uint64_t h = hash(seed, static_cast<uint64_t>(index));
  const uint32_t kind = static_cast<uint32_t>(h & 255u);
  const uint32_t mantissa = static_cast<uint32_t>(h >> 16 & 127u);
  if (kind == 0) return 0;
  if (kind == 1) return static_cast<uint16_t>(67u << 7 | mantissa);
  if (kind == 2) return static_cast<uint16_t>(mantissa | 1u);
  const uint32_t exponent = 115u + static_cast<uint32_t>((h >> 32) % 7);
  return static_cast<uint16_t>((kind < 19 ? 0x8000u : 0u) | exponent << 7 | mantissa);
}

// A number in [-1/2, 1/2) on a grid of 2^-16: biases, router corrections.
QD_HD constexpr float small_number(uint64_t seed, int64_t index) {
  const int32_t h = static_cast<int32_t>(hash(seed, static_cast<uint64_t>(index)) >> 24 & 0xffffu) - 0x8000;
  return static_cast<float>(h) * (1.0f / 65536.0f);
}

// Close to N(0, 1): the sum of four uniform numbers; one in 512 is sixteen times larger.
QD_HD float normal_number(uint64_t seed, uint64_t index) {
  const uint64_t h = hash(seed, index);
  const int32_t sum =
      static_cast<int32_t>((h & 0xffffu) + (h >> 16 & 0xffffu) + (h >> 32 & 0xffffu) + (h >> 48)) - 131070;
  const float x = static_cast<float>(sum) * 2.643e-5f;
  return hash(h, 1) % 512 == 0 ? x * 16.0f : x;
}
// A bf16 weight of about 2^-5: router rows, gates of shared experts.
QD_HD uint16_t small_weight_bits(uint64_t seed, int64_t index) {
  return numerics::bf16_from_f32(normal_number(seed, static_cast<uint64_t>(index)) * 0.03125f);
}

// What is special about a token's row.
enum class RowKind { kPlain, kZero, kTiny, kLarge, kNan, kInfinity, kMinusInfinity, kHuge };

// `nonfinite`: half of the rows hold one value that is NaN, infinite or close to the largest bf16.
QD_HD constexpr RowKind row_kind(uint64_t seed, int64_t key, bool nonfinite) {
  const uint64_t h = hash(seed, static_cast<uint64_t>(key) + 0x100000000ull);
  if (nonfinite && h % 2 == 0) return static_cast<RowKind>(4 + (h >> 8) % 4);
  const uint64_t kind = (h >> 16) % 64;
  return kind == 0 ? RowKind::kZero : kind == 1 ? RowKind::kTiny : kind == 2 ? RowKind::kLarge : RowKind::kPlain;
}

// bf16 activation `column` of the token named `key` (which is its place in the unpermuted batch).
QD_HD uint16_t activation_bits(uint64_t seed, int64_t key, int64_t column, int64_t hidden, bool nonfinite) {
  const RowKind kind = row_kind(seed, key, nonfinite);
  const uint64_t row = hash(seed, static_cast<uint64_t>(key));
  if (kind == RowKind::kZero) return 0;
  const bool chosen = column == static_cast<int64_t>(row % static_cast<uint64_t>(hidden));
  if (chosen && kind == RowKind::kNan) return 0xffc1;
  if (chosen && kind == RowKind::kInfinity) return 0x7f80;
  if (chosen && kind == RowKind::kMinusInfinity) return 0xff80;
  if (chosen && kind == RowKind::kHuge) return 0x7f7f;
  float x = normal_number(row, static_cast<uint64_t>(column));
  if (kind == RowKind::kTiny) x *= 0x1p-20f;
  if (kind == RowKind::kLarge) x *= 0x1p10f;
  return numerics::bf16_from_f32(x);
}

// An e4m3 code of an activation that came quantised: any finite code but those above 2^4.
QD_HD constexpr uint8_t e4m3_bits(uint64_t seed, int64_t index) {
  const uint32_t h = static_cast<uint32_t>(hash(seed, static_cast<uint64_t>(index)) >> 20);
  return static_cast<uint8_t>((h & 0x80u) | (h >> 8) % 0x5cu);
}

}  // namespace quadrille::testing
