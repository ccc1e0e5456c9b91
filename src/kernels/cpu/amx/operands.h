// SPDX-License-Identifier: Apache-2.0
// The bf16 operands of the tiles, made with AVX-512 VBMI: weights from lines of w4_lanes16 (16 rows x 8 consecutive k),
// tokens from e4m3 codes. Both are exact: q and every e4m3 value are bf16 values.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/avx512/simd.h"
#include "kernels/cpu/body/w4a8_weight.h"
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

// `vllm`: the same of E4(scale * q).
template <int Pair = 0>
QD_HD void decode_line(const uint32_t* line, Simd::F scale, uint16_t* tile) {
  if constexpr (Pair < kLinePairs) {
    const Simd::I words = Simd::load_words(line);
    const __m512i even = Simd::as_int(weight<Simd, true, 2 * Pair>(words, scale));
    const __m512i odd = Simd::as_int(weight<Simd, true, 2 * Pair + 1>(words, scale));
    constexpr int kOrMasked = 0xf8;  // a | (b & c)
    const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
    _mm512_storeu_si512(tile + Pair * 2 * kBlockRows,
                        _mm512_ternarylogic_epi32(_mm512_srli_epi32(even, 16), odd, upper, kOrMasked));
    decode_line<Pair + 1>(line, scale, tile);
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
