// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the digits form (body/w4a8_digits.h) for AVX-512: packing, decoding, and the dot product of
// AVX-512 BW, which processors without VNNI have. avx512/isa.cpp and avx512/vnni.cpp include it.
#pragma once

#include "kernels/cpu/avx512/simd.h"
#include "kernels/cpu/body/w4a8_digits.h"

namespace quadrille::kernels::cpu {
namespace {

struct Digits {
  using S = Simd;
  using I = Simd::I;
  using F = Simd::F;
  static constexpr int kTokens = 7;        // at once: 21 sums, two weights, two constants
  static constexpr int64_t kMostRows = 1;  // without VNNI, fma chains win from two rows on
  static constexpr int vectors(int) { return 1; }
  static constexpr int64_t kAhead = 2048;  // bytes

  // The four lines of a step of one vector of rows.
  QD_HD static void prefetch(const uint32_t* codes) {
    const char* from = reinterpret_cast<const char*>(codes) + kAhead;
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) _mm_prefetch(from + line * 64, _MM_HINT_T0);
  }

  // q + 8 of the even and of the odd positions of each word, as bytes.
  QD_HD static void split(I words, I (&weights)[2]) {
    weights[0] = flipped(words);
    weights[1] = flipped(_mm512_srli_epi32(words, 4));
  }

  // Sums of pairs in 16 bits: eight products of 15 * 128 a lane and step, twice, stay below 2^15.
  QD_HD static I first(int32_t) { return _mm512_setzero_si512(); }
  QD_HD static I dot(I sum, I weights, I digits) {
    sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(weights, digits));
    // Keeps the compiler from adding in another order, which keeps all products alive: g++ 12 spilled them.
    __asm__("" : "+v"(sum));
    return sum;
  }
  QD_HD static I total(const I (&sum)[3], int32_t start) {
    const I high = _mm512_slli_epi32(_mm512_madd_epi16(sum[2], _mm512_set1_epi16(1)), 16);
    const I low = _mm512_add_epi32(_mm512_madd_epi16(sum[1], _mm512_set1_epi16(256)),
                                   _mm512_madd_epi16(sum[0], _mm512_set1_epi16(1)));
    return _mm512_add_epi32(_mm512_add_epi32(high, low), Simd::set_i(start));
  }
  QD_HD static F to_float(I v) { return _mm512_cvtepi32_ps(v); }

  // One step of codes into a record; false where the chains may round, or for a NaN.
  QD_HD static bool pack_step(const uint8_t* codes, int32_t* record) {
    const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    // 32 codes as 16-bit lanes are 16 pairs (even, odd) as 32-bit lanes.
    const Value even = value(_mm512_and_si512(wide, Simd::set_i(0xff)));
    const Value odd = value(_mm512_srli_epi32(wide, 16));
    store_digits(even.x, record);
    store_digits(odd.x, record + 4);
    const __m256i magnitudes = _mm256_hadd_epi32(halves(even.magnitude), halves(odd.magnitude));
    const __m256i values = halves(_mm512_add_epi32(even.x, odd.x));
    const __m256i sums = _mm256_hadd_epi32(magnitudes, _mm256_hadd_epi32(values, values));
    const __m128i all = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    record[kDigitStart] = -8 * _mm_extract_epi32(all, 2);
    const bool exact = (_mm_movemask_epi8(_mm_cmpgt_epi32(all, _mm_set1_epi32(kDigitBound))) & 0xff) == 0;
    return exact && (even.nan | odd.nan) == 0;
  }

 protected:
  QD_HD static I flipped(I words) {
    constexpr int kMaskThenFlip = 0x6a;  // (words & mask) ^ flip
    return _mm512_ternarylogic_epi32(words, Simd::set_i(0x0f0f0f0f), Simd::set_i(0x08080808), kMaskThenFlip);
  }

 private:
  struct Value {
    I x, magnitude;  // in units of 2^-9
    __mmask16 nan;
  };
  QD_HD static Value value(I code) {
    const I magnitude = _mm512_and_si512(code, Simd::set_i(0x7f));
    const I exponent = _mm512_srli_epi32(magnitude, 3);
    const I mantissa = _mm512_or_si512(_mm512_and_si512(magnitude, Simd::set_i(7)), Simd::set_i(8));
    const I normal = _mm512_sllv_epi32(mantissa, _mm512_sub_epi32(exponent, Simd::set_i(1)));
    Value result;
    result.nan = _mm512_cmpeq_epi32_mask(magnitude, Simd::set_i(0x7f));
    result.magnitude = _mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(magnitude, Simd::set_i(8)), magnitude);
    result.x = _mm512_mask_sub_epi32(result.magnitude, _mm512_test_epi32_mask(code, Simd::set_i(0x80)),
                                     _mm512_setzero_si512(), result.magnitude);
    return result;
  }
  // The three digits of 16 values of one parity.
  QD_HD static void store_digits(I x, int32_t* record) {
#pragma GCC unroll 3
    for (int digit = 0; digit < 3; ++digit) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(record + digit * 8), _mm512_cvtepi32_epi8(x));
      x = _mm512_srai_epi32(_mm512_add_epi32(x, Simd::set_i(128)), 8);
    }
  }
  QD_HD static __m256i halves(I v) {
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
