// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the digits form (body/w4a8_digits.h) for AVX2: packing, decoding, and dot products of pairs of
// bytes. Only avx2/isa.cpp includes it.
#pragma once

#include "kernels/cpu/avx2/simd.h"
#include "kernels/cpu/body/w4a8_digits.h"

namespace quadrille::kernels::cpu {
namespace {

struct Digits {
  using S = Simd;
  using I = Simd::I;
  using F = Simd::F;
  static constexpr int kTokens = 2;  // at once
  static constexpr int64_t kMostRows = 1;
  static constexpr int vectors(int tokens) { return tokens == 1 ? 2 : 1; }
  static constexpr int64_t kAhead = 2048;  // bytes

  // The four lines of a step: both vectors of a block read the same lines.
  QD_HD static void prefetch(const uint32_t* codes) {
    const char* from = reinterpret_cast<const char*>(codes) + kAhead;
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) _mm_prefetch(from + line * 64, _MM_HINT_T0);
  }

  // q + 8 of the even and of the odd positions of each word, as bytes.
  QD_HD static void split(I words, I (&weights)[2]) {
    const I flipped = _mm256_xor_si256(words, Simd::set_i(static_cast<int32_t>(0x88888888u)));
    weights[0] = _mm256_and_si256(flipped, Simd::set_i(0x0f0f0f0f));
    weights[1] = _mm256_and_si256(_mm256_srli_epi32(flipped, 4), Simd::set_i(0x0f0f0f0f));
  }

  // Sums of pairs in 16 bits: eight products of 15 * 128 a lane and step, twice, stay below 2^15.
  QD_HD static I first(int32_t) { return _mm256_setzero_si256(); }
  QD_HD static I dot(I sum, I weights, I digits) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, digits));
    // Keeps the compiler from adding in another order, which keeps all products alive: g++ 12 spilled them.
    __asm__("" : "+x"(sum));
    return sum;
  }
  QD_HD static I total(const I (&sum)[3], int32_t start) {
    const I high = _mm256_slli_epi32(_mm256_madd_epi16(sum[2], _mm256_set1_epi16(1)), 16);
    const I low = _mm256_add_epi32(_mm256_madd_epi16(sum[1], _mm256_set1_epi16(256)),
                                   _mm256_madd_epi16(sum[0], _mm256_set1_epi16(1)));
    return _mm256_add_epi32(_mm256_add_epi32(high, low), Simd::set_i(start));
  }
  QD_HD static F to_float(I v) { return _mm256_cvtepi32_ps(v); }

  // One step of codes into a record; false where the chains may round, or for a NaN.
  QD_HD static bool pack_step(const uint8_t* codes, int32_t* record) {
    const I raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    // Each word's eight codes: the even ones, then the odd ones.
    const I order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,  //
                                     0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    const I nan = _mm256_cmpeq_epi8(_mm256_and_si256(raw, _mm256_set1_epi8(0x7f)), _mm256_set1_epi8(0x7f));
    alignas(32) uint8_t sorted[kStep];
    _mm256_store_si256(reinterpret_cast<__m256i*>(sorted), _mm256_shuffle_epi8(raw, order));
    I x[4];
    I magnitudes = _mm256_setzero_si256();
    I values = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w) {
      const I code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(sorted + w * 8)));
      const I magnitude = magnitude_of(code);
      magnitudes = _mm256_add_epi32(magnitudes, magnitude);
      // 1 or -1 with the code's sign; a product with it negates.
      const I sign = _mm256_or_si256(_mm256_srai_epi32(_mm256_slli_epi32(code, 24), 31), Simd::set_i(1));
      x[w] = _mm256_sign_epi32(magnitude, sign);
      values = _mm256_add_epi32(values, x[w]);
    }
    store_digits(x, record);
    // Low half: even positions, high half: odd ones.
    const I pairs = _mm256_hadd_epi32(magnitudes, values);
    const I sums = _mm256_hadd_epi32(pairs, pairs);  // a half: magnitude, value, ...
    const __m128i even = _mm256_castsi256_si128(sums), odd = _mm256_extracti128_si256(sums, 1);
    record[kDigitStart] = -8 * (_mm_extract_epi32(even, 1) + _mm_extract_epi32(odd, 1));
    return _mm_cvtsi128_si32(even) <= kDigitBound && _mm_cvtsi128_si32(odd) <= kDigitBound &&
           _mm256_movemask_epi8(nan) == 0;
  }

 private:
  // |X| of a code, in units of 2^-9.
  QD_HD static I magnitude_of(I code) {
    const I magnitude = _mm256_and_si256(code, Simd::set_i(0x7f));
    const I exponent = _mm256_srli_epi32(magnitude, 3);
    const I mantissa = _mm256_or_si256(_mm256_and_si256(magnitude, Simd::set_i(7)), Simd::set_i(8));
    const I normal = _mm256_sllv_epi32(mantissa, _mm256_sub_epi32(exponent, Simd::set_i(1)));
    return _mm256_blendv_epi8(normal, magnitude, _mm256_cmpgt_epi32(Simd::set_i(8), magnitude));
  }
  // x of the four words, even positions in the low halves: packing twice leaves [even, odd][word] of four bytes.
  QD_HD static void store_digits(I (&x)[4], int32_t* record) {
#pragma GCC unroll 3
    for (int digit = 0; digit < 3; ++digit) {
      I byte[4];
#pragma GCC unroll 4
      for (int w = 0; w < 4; ++w) {
        byte[w] = _mm256_srai_epi32(_mm256_slli_epi32(x[w], 24), 24);
        x[w] = _mm256_srai_epi32(_mm256_add_epi32(x[w], Simd::set_i(128)), 8);
      }
      const I packed = _mm256_packs_epi16(_mm256_packs_epi32(byte[0], byte[1]), _mm256_packs_epi32(byte[2], byte[3]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(record + digit * 8), packed);
    }
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
