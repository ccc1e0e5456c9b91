// SPDX-License-Identifier: Apache-2.0
// Weight words of layout/w4_lanes16.h to pairs of bf16, the operands of vdpbf16ps: pair j of a line holds positions j
// (low half) and j + 4 (high half) of its 8 consecutive k, so that one shift serves both halves of a word. The packed
// tokens lie the same way. Only this unit includes it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/cpu/avx512/simd.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kLinePairs = 4;  // pairs of a line of 8 positions
using Pair = __m512i;          // of 16 rows

// acc + the products of a pair: first the high half, then the low one, an fma each. In assembler, because g++ 12 does
// not fold the broadcast of the intrinsic's operand into the instruction, and clang 16 crashes on it.
QD_HD Simd::F dot(Simd::F acc, Pair weights, const uint32_t& token) {
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(weights), "m"(token));
  return acc;
}

// 32 positions of a token (exact in bf16) -> its 16 pairs, line by line.
QD_HD Pair pairs_of_step(Simd::F first, Simd::F second) {
  const __m512i low = _mm512_shuffle_i32x4(Simd::as_int(first), Simd::as_int(second), 0x88);   // 128-bit lanes 0 and 2
  const __m512i high = _mm512_shuffle_i32x4(Simd::as_int(first), Simd::as_int(second), 0xdd);  // and 1 and 3
  const __m512i upper = _mm512_and_si512(high, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u)));
  return _mm512_or_si512(_mm512_srli_epi32(low, 16), upper);
}

// The values of the 16 codes as bf16, twice.
struct CodeValues {
  alignas(64) uint16_t of[32];
};
constexpr CodeValues code_values() {
  CodeValues values{};
  for (int i = 0; i < 32; ++i)
    values.of[i] = numerics::bf16_from_f32(static_cast<float>(i % 16 < 8 ? i % 16 : i % 16 - 16));
  return values;
}
constexpr CodeValues kCodeValues = code_values();

// `exact`: q, by a permute. It looks at five bits of each half; the fifth is a neighbour's, hence two copies.
struct ExactPairs {
  static constexpr bool kVllm = false;
  Pair table = _mm512_load_si512(kCodeValues.of);

  QD_HD void set_scale(Simd::F) {}
  QD_HD void line(Simd::I words, Pair (&pairs)[kLinePairs]) const {
    pairs[0] = _mm512_permutexvar_epi16(words, table);
    pairs[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
    pairs[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table);
    pairs[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table);
  }
};

// `vllm`: E4(s8 * q). The eight magnitudes of each row's group lie in byte tables, the low and the high bytes of their
// bf16 numbers apart: entry 64 * (i / 4) + 4 * row + i % 4 is that of |q| = i + 1. One lookup serves four nibbles.
struct VllmPairs {
  static constexpr bool kVllm = true;
  Pair low[2], high[2];
  __mmask64 kept_zeros;  // all bytes of rows whose scale is NaN: there 0 * NaN is NaN, too

  QD_HD void set_scale(Simd::F scale) {
    for (int half = 0; half < 2; ++half) {
      Simd::I value[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        value[i] = Simd::as_int(Simd::round_e4m3(Simd::mul(scale, Simd::set(static_cast<float>(4 * half + i + 1)))));
      }
      low[half] = bytes_of<16>(value);
      high[half] = bytes_of<24>(value);
    }
    const __mmask16 nan = _mm512_cmp_ps_mask(scale, scale, _CMP_UNORD_Q);
    kept_zeros = _mm512_movepi8_mask(_mm512_maskz_set1_epi32(nan, -1));
  }

  QD_HD void line(Simd::I words, Pair (&pairs)[kLinePairs]) const {
    Pair even[2], odd[2];
    four(words, even);
    four(_mm512_srli_epi16(words, 4), odd);
    pairs[0] = join_low(even);
    pairs[1] = join_low(odd);
    pairs[2] = join_high(even);
    pairs[3] = join_high(odd);
  }

 private:
  // Byte (kBit..kBit+7) of four values -> the four bytes of a word, the first lowest.
  template <int kBit>
  QD_HD static Pair bytes_of(const Simd::I (&value)[4]) {
    const __m512i byte = _mm512_set1_epi32(0xff);
    const __m512i a = _mm512_and_si512(_mm512_srli_epi32(value[0], kBit), byte);
    const __m512i b = _mm512_and_si512(_mm512_srli_epi32(value[1], kBit), byte);
    const __m512i c = _mm512_and_si512(_mm512_srli_epi32(value[2], kBit), byte);
    const __m512i d = _mm512_srli_epi32(value[3], kBit);
    const __m512i ab = _mm512_or_si512(a, _mm512_slli_epi32(b, 8));
    return _mm512_or_si512(ab, _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24)));
  }

  // The low and high bytes of the bf16 numbers of the lower nibble of each byte.
  QD_HD void four(Simd::I words, Pair (&bytes)[2]) const {
    // Nibble -> (i / 4) * 64 + i % 4 with i = |q| - 1; that of 0 is masked away.
    const __m512i entry = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 0x00, 0x01, 0x02, 0x03, 0x40, 0x41, 0x42, 0x43, 0x42, 0x41, 0x40, 0x03, 0x02, 0x01, 0x00));
    const __m512i row = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                           _mm512_set1_epi32(0x04040404));
    const __m512i nibbles = _mm512_and_si512(words, _mm512_set1_epi8(0x0f));
    const __m512i index = _mm512_or_si512(_mm512_shuffle_epi8(entry, nibbles), row);
    const __mmask64 kept = _kor_mask64(_mm512_test_epi8_mask(nibbles, nibbles), kept_zeros);
    constexpr int kXorOfBit = 0x6c;  // b ^ (a & c)
    const __m512i shifted = _mm512_slli_epi16(nibbles, 4);
    bytes[0] = _mm512_maskz_permutex2var_epi8(kept, low[0], index, low[1]);
    const __m512i magnitude = _mm512_maskz_permutex2var_epi8(kept, high[0], index, high[1]);
    bytes[1] = _mm512_ternarylogic_epi32(shifted, magnitude, _mm512_set1_epi8(-0x80), kXorOfBit);
  }

  // Bytes 0 and 2 of each word, and 1 and 3, as bf16 numbers.
  QD_HD static Pair join_low(const Pair (&bytes)[2]) { return select(_mm512_slli_epi16(bytes[1], 8), bytes[0]); }
  QD_HD static Pair join_high(const Pair (&bytes)[2]) { return select(bytes[1], _mm512_srli_epi16(bytes[0], 8)); }
  // The high bytes of a, the low bytes of b.
  QD_HD static Pair select(__m512i a, __m512i b) {
    constexpr int kTakeByThird = 0xe4;  // c ? a : b, with the operands a, b, c
    return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi16(static_cast<int16_t>(0xff00)), kTakeByThird);
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
