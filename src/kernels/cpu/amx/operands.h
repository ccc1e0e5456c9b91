// SPDX-License-Identifier: Apache-2.0
// The bf16 operands of the tiles, made with AVX-512 VBMI: weights from lines of w4_lanes16 (16 rows x 8 consecutive k),
// tokens from e4m3 codes. Both are exact: q and every e4m3 value are bf16 values.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/avx512/simd.h"
#include "kernels/cpu/body/gemm_tile.h"
#include "numerics/fp8_e4m3.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kLinePairs = 4;  // pairs of k in a line

// The two bytes of the bf16 value of e4m3 codes 0..127 (the sign is bit 7 of the code and of the upper byte).
struct E4m3Bytes {
  alignas(64) uint8_t lower[128];
  alignas(64) uint8_t upper[128];
};

constexpr E4m3Bytes e4m3_bytes() {
  E4m3Bytes bytes{};
  for (int code = 0; code < 128; ++code) {
    const uint32_t bits = numerics::bits_of(numerics::e4m3_to_f32(static_cast<uint8_t>(code))) >> 16;
    bytes.lower[code] = static_cast<uint8_t>(bits);
    bytes.upper[code] = static_cast<uint8_t>(bits >> 8);
  }
  return bytes;
}

constexpr E4m3Bytes kE4m3Bytes = e4m3_bytes();

// Values of `count` (1..64) codes as bf16, [0, 32) to `first` and [32, 64) to `second` where it is not null; zero
// behind count. Three cycles of the permute port for 32 codes, NaN and subnormals at no price.
QD_HD void widen_codes(const uint8_t* codes, int64_t count, uint16_t* first, uint16_t* second) {
  const __mmask64 some = count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
  // unpack works inside 16-byte lanes: it gets the quarters of each half where it puts them in order.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i code = _mm512_permutexvar_epi64(order, _mm512_maskz_loadu_epi8(some, codes));
  const __m512i lower =
      _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Bytes.lower), code, _mm512_load_si512(kE4m3Bytes.lower + 64));
  const __m512i magnitude =
      _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Bytes.upper), code, _mm512_load_si512(kE4m3Bytes.upper + 64));
  constexpr int kOrMasked = 0xf8;  // a | (b & c)
  const __m512i upper = _mm512_ternarylogic_epi32(magnitude, code, _mm512_set1_epi8(-128), kOrMasked);
  _mm512_storeu_si512(first, _mm512_unpacklo_epi8(lower, upper));
  if (second != nullptr) _mm512_storeu_si512(second, _mm512_unpackhi_epi8(lower, upper));
}

// `exact`: a line as four rows of a weight tile, [4 pairs][16 rows][2] bf16 values of q. A multishift puts nibble 2p
// into the low and nibble 2p + 1 into the high half of each word, a permute of a table by the low five bits makes the
// number; the table says every value twice, because bit 4 belongs to another nibble.
QD_HD void decode_line(const uint32_t* line, uint16_t* tile) {
  const __m512i table = _mm512_broadcast_i64x4(
      _mm256_setr_epi16(0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, static_cast<int16_t>(0xc100),
                        static_cast<int16_t>(0xc0e0), static_cast<int16_t>(0xc0c0), static_cast<int16_t>(0xc0a0),
                        static_cast<int16_t>(0xc080), static_cast<int16_t>(0xc040), static_cast<int16_t>(0xc000),
                        static_cast<int16_t>(0xbf80)));
  const __m512i words = _mm512_loadu_si512(line);
#pragma GCC unroll 4
  for (int pair = 0; pair < kLinePairs; ++pair) {
    // Bit offsets in a 64-bit lane of bytes 0 and 2 (1 and 3 are not looked at) of its two words.
    const int64_t offsets =
        (8 * pair) | int64_t{8 * pair + 4} << 16 | int64_t{8 * pair + 32} << 32 | int64_t{8 * pair + 36} << 48;
    const __m512i index = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(offsets), words);
    _mm512_storeu_si512(tile + pair * 2 * kBlockRows, _mm512_permutexvar_epi16(index, table));
  }
}

// The two bytes of the bf16 value of E4(scale * q), for every e4m3 code of a scale, by the nibble of q.
struct ProductBytes {
  alignas(64) uint8_t lower[256][16];
  alignas(64) uint8_t upper[256][16];
};

constexpr ProductBytes product_bytes() {
  ProductBytes bytes{};
  for (int code = 0; code < 256; ++code) {
    const float scale = numerics::e4m3_to_f32(static_cast<uint8_t>(code));
    for (int nibble = 0; nibble < 16; ++nibble) {
      const auto q = static_cast<float>(nibble < 8 ? nibble : nibble - 16);
      // A product that is NaN is no constant expression for clang.
      const float product = numerics::e4m3_is_nan(static_cast<uint8_t>(code)) ? scale : scale * q;
      const uint32_t bits = numerics::bits_of(numerics::e4m3_to_f32(numerics::e4m3_from_f32(product))) >> 16;
      bytes.lower[code][nibble] = static_cast<uint8_t>(bits);
      bytes.upper[code][nibble] = static_cast<uint8_t>(bits >> 8);
    }
  }
  return bytes;
}

constexpr ProductBytes kProductBytes = product_bytes();

// Those of the 16 rows of a block: 16-byte lane i of vector j belongs to row 4 i + j.
struct RowTables {
  __m512i lower[4];
  __m512i upper[4];
};

QD_HD __m512i tables_of_rows(const uint8_t (&table)[256][16], const uint8_t* codes) {
  const auto row = [&](int i) { return _mm_load_si128(reinterpret_cast<const __m128i*>(table[codes[4 * i]])); };
  const __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(low, row(2), 2), row(3), 3);
}

QD_HD void load_row_tables(const uint8_t* scale_codes, RowTables& tables) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    tables.lower[j] = tables_of_rows(kProductBytes.lower, scale_codes + j);
    tables.upper[j] = tables_of_rows(kProductBytes.upper, scale_codes + j);
  }
}

// Word j of vector i <-> word i of vector j, in every 16-byte lane.
QD_HD void transpose_words(__m512i (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// `vllm`: the four lines of a step as a weight tile [16 pairs][16 rows][2] of E4(scale * q). The words of four rows are
// brought into lanes of one row each, whose bytes a shuffle of the row's tables turns into numbers, and back.
QD_HD void decode_step(const uint32_t* lines, const RowTables& tables, uint16_t* tile) {
  __m512i row[4], pairs[4][4];  // pairs [quarter of the step][row of four]
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) row[i] = _mm512_loadu_si512(lines + i * kBlockRows);
  transpose_words(row);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i even = _mm512_and_si512(row[j], _mm512_set1_epi8(15));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(row[j], 4), _mm512_set1_epi8(15));
    const __m512i even_lower = _mm512_shuffle_epi8(tables.lower[j], even);
    const __m512i even_upper = _mm512_shuffle_epi8(tables.upper[j], even);
    const __m512i odd_lower = _mm512_shuffle_epi8(tables.lower[j], odd);
    const __m512i odd_upper = _mm512_shuffle_epi8(tables.upper[j], odd);
    const __m512i even0 = _mm512_unpacklo_epi8(even_lower, even_upper);
    const __m512i even1 = _mm512_unpackhi_epi8(even_lower, even_upper);
    const __m512i odd0 = _mm512_unpacklo_epi8(odd_lower, odd_upper);
    const __m512i odd1 = _mm512_unpackhi_epi8(odd_lower, odd_upper);
    pairs[0][j] = _mm512_unpacklo_epi16(even0, odd0);
    pairs[1][j] = _mm512_unpackhi_epi16(even0, odd0);
    pairs[2][j] = _mm512_unpacklo_epi16(even1, odd1);
    pairs[3][j] = _mm512_unpackhi_epi16(even1, odd1);
  }
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter) {
    transpose_words(pairs[quarter]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) _mm512_storeu_si512(tile + (quarter * 4 + p) * 2 * kBlockRows, pairs[quarter][p]);
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
