// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the AVX-512 unit (F, BW, VL, DQ): 16 fp32 lanes. Only avx512/isa.cpp includes it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::kernels::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 16;
  // Register tile of the panel kernels: vectors of rows x tokens. Seven tokens are also what one direct tile holds: 14
  // chains, 7 sums and the constants of the decoder fill the 32 registers.
  static constexpr int kTileVectors = 2;
  static constexpr int kTileTokens = 7;
  // Whether products of many tokens decode weights again for every tile instead of filling a panel (measured).
  static constexpr bool kDirectAlways = true;
  // Vectors of rows that the direct kernels take at once for 1, 2, and more tokens.
  static constexpr int kDirectVectors1 = 1;
  static constexpr int kDirectVectors2 = 1;
  static constexpr int kDirectVectors3 = 1;
  // The same for the bf16 product, whose chains are long: enough of them to hide the latency of an fma.
  static constexpr int kBf16Vectors1 = 4;
  static constexpr int kBf16Vectors2 = 4;
  static constexpr int kBf16Vectors3 = 4;
  using F = __m512;
  using I = __m512i;

  QD_HD static F zero() { return _mm512_setzero_ps(); }
  QD_HD static F set(float x) { return _mm512_set1_ps(x); }
  QD_HD static F load(const float* p) { return _mm512_loadu_ps(p); }
  QD_HD static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  QD_HD static F load_part(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(mask(count), p); }
  QD_HD static void store_part(float* p, F v, int64_t count) { _mm512_mask_storeu_ps(p, mask(count), v); }

  QD_HD static F add(F a, F b) { return _mm512_add_ps(a, b); }
  QD_HD static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  QD_HD static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  QD_HD static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // The second operand where either is NaN, as in SSE.
  QD_HD static F min(F a, F b) { return _mm512_min_ps(a, b); }
  QD_HD static F max(F a, F b) { return _mm512_max_ps(a, b); }
  QD_HD static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // fma whose product a * b is known to be exact in fp32.
  QD_HD static F fma_exact(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  QD_HD static F abs(F a) { return _mm512_and_ps(a, as_float(set_i(0x7fffffff))); }
  QD_HD static F negate(F a) { return _mm512_xor_ps(a, as_float(set_i(INT32_MIN))); }

  QD_HD static I set_i(int32_t x) { return _mm512_set1_epi32(x); }
  QD_HD static I as_int(F v) { return _mm512_castps_si512(v); }
  QD_HD static F as_float(I v) { return _mm512_castsi512_ps(v); }
  QD_HD static I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
  QD_HD static I sub_i(I a, I b) { return _mm512_sub_epi32(a, b); }
  template <int kBits>
  QD_HD static I shift_left(I v) {
    return _mm512_slli_epi32(v, kBits);
  }
  template <int kBits>
  QD_HD static I shift_right_signed(I v) {
    return _mm512_srai_epi32(v, kBits);
  }

  // value where x is a number, else the canonical NaN of fp32.
  QD_HD static F number_or_nan(F x, F value) {
    return _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), as_float(set_i(0x7fffffff)));
  }
  // Lanes first .. last-1 of a row of lanes that starts at `index` keep v, all others get `other`.
  QD_HD static F keep_range(F v, F other, int64_t index, int64_t first, int64_t last) {
    const int64_t from = first - index < 0 ? 0 : (first - index > kLanes ? kLanes : first - index);
    const int64_t to = last - index < 0 ? 0 : (last - index > kLanes ? kLanes : last - index);
    const uint32_t kept = ((1u << to) - 1u) & ~((1u << from) - 1u);
    return _mm512_mask_mov_ps(other, static_cast<__mmask16>(kept), v);
  }

  QD_HD static F load_bf16(const uint16_t* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  QD_HD static F load_bf16_part(const uint16_t* p, int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(mask(count), p));
  }
  // Nearest even, kept in fp32; NaN gives 0x7FFF0000.
  QD_HD static F round_bf16(F x) {
    const I u = as_int(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), set_i(1));
    const I sum = _mm512_add_epi32(u, _mm512_add_epi32(odd, set_i(0x7fff)));
    const I kept = _mm512_and_si512(sum, set_i(static_cast<int32_t>(0xffff0000u)));
    return as_float(_mm512_mask_mov_epi32(kept, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), set_i(0x7fff0000)));
  }

  // kLanes e4m3 codes -> values (numerics::e4m3_to_f32).
  QD_HD static F load_e4m3(const uint8_t* p) {
    const I code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const I magnitude = _mm512_and_si512(code, set_i(0x7f));
    const I sign = _mm512_slli_epi32(_mm512_xor_si512(code, magnitude), 24);
    const F subnormal = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), set(0x1p-9f));
    const I normal = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 20), set_i(120 << 23));
    I value = _mm512_mask_mov_epi32(as_int(subnormal), _mm512_cmpgt_epi32_mask(magnitude, set_i(7)), normal);
    value = _mm512_or_si512(value, sign);
    return as_float(_mm512_mask_mov_epi32(value, _mm512_cmpeq_epi32_mask(magnitude, set_i(0x7f)), set_i(0x7fffffff)));
  }
  // numerics::e4m3_from_f32 of each lane.
  QD_HD static void store_e4m3(uint8_t* p, F x) {
    const I u = as_int(x);
    const I a = _mm512_and_si512(u, set_i(0x7fffffff));
    const I sign = _mm512_and_si512(_mm512_srli_epi32(u, 24), set_i(0x80));
    const I odd = _mm512_and_si512(_mm512_srli_epi32(a, 20), set_i(1));
    const I rounded = _mm512_add_epi32(a, _mm512_add_epi32(odd, set_i(0x7ffff)));
    const I normal = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), set_i(120 << 3));
    const I small = _mm512_sub_epi32(as_int(_mm512_add_ps(as_float(a), set(16384.0f))), as_int(set(16384.0f)));
    I code = _mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(a, as_int(set(0x1p-6f))), small);
    code = _mm512_mask_mov_epi32(code, _mm512_cmpge_epi32_mask(a, as_int(set(448.0f))), set_i(0x7e));
    code = _mm512_or_si512(code, sign);
    code = _mm512_mask_mov_epi32(code, _mm512_cmpgt_epi32_mask(a, set_i(0x7f800000)), set_i(0x7f));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(code));
  }
  // The value of E4(v) for |v| far below 2^100; NaN stays NaN. The added number has the unit of e4m3 at v's size.
  QD_HD static F round_e4m3(F v) {
    const I exponent = _mm512_and_si512(as_int(v), set_i(0x7f800000));
    const I floor = _mm512_max_epi32(exponent, as_int(set(0x1p-6f)));
    const F magic = as_float(_mm512_add_epi32(floor, set_i((20 << 23) | 0x400000)));
    const F rounded = _mm512_sub_ps(_mm512_add_ps(v, magic), magic);
    return _mm512_max_ps(set(-448.0f), _mm512_min_ps(set(448.0f), rounded));
  }

  // kLanes words of eight nibbles, and the value q of nibble J of each. Two ways that load different ports: a permute
  // of a table of bf16 by the low five bits of each 16-bit half gives J = 0 and 4 together (the table repeats, so that
  // the fifth bit does not matter), and a number whose mantissa holds the nibble at a place of weight one, flipped to
  // q + 8 by the same logic operation that masks it, less that number's constant (the others).
  QD_HD static I load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
  template <int J>
  QD_HD static F nibble(I words) {
    constexpr int kPlace = J % 4;
    if constexpr (kPlace == 0) {
      const I pair = _mm512_permutexvar_epi16(words, bf16_of_nibbles());
      if constexpr (J == 0) return as_float(_mm512_slli_epi32(pair, 16));
      return as_float(_mm512_and_si512(pair, set_i(static_cast<int32_t>(0xffff0000u))));
    }
    const I half = J < 4 ? words : _mm512_srli_epi32(words, 16);
    constexpr int kBits = 4 * kPlace;
    constexpr int kMaskThenFlip = 0x6a;  // (half & mask) ^ flip
    const I number =
        _mm512_ternarylogic_epi32(half, set_i(15 << kBits), set_i(((150 - kBits) << 23) | (8 << kBits)), kMaskThenFlip);
    return _mm512_sub_ps(as_float(number), set(static_cast<float>(1 << (23 - kBits)) + 8.0f));
  }

  // The tree of numerics::lane_tree over 32 lanes: distances 16, 8, 4, 2, 1.
  QD_HD static float tree32(const F* lanes) {
    const F v16 = _mm512_add_ps(lanes[0], lanes[1]);
    const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256(v16), _mm512_extractf32x8_ps(v16, 1));
    const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
  }

  // Bytes, and sums of their products with 16-bit integers: the integer form of `vllm` (body/w4a8_vllm.h). A lane here
  // is 16 bytes, a word 4.
  static constexpr bool kByteTables = true;
  static constexpr int kIntegerSums = 24;  // registers for sums
  QD_HD static I load_i(const void* p) { return _mm512_loadu_si512(p); }
  QD_HD static void store_i(void* p, I v) { _mm512_storeu_si512(p, v); }
  // 16 bytes into every lane.
  QD_HD static I load_quarter(const void* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  QD_HD static I and_i(I a, I b) { return _mm512_and_si512(a, b); }
  template <int kBits>
  QD_HD static I shift_right(I v) {
    return _mm512_srli_epi32(v, kBits);
  }
  QD_HD static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  // Word j of register i <-> word i of register j, in every lane.
  QD_HD static void transpose4(I (&v)[4]) {
    const I a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const I c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
  }
  // Lane j: the table of codes[4 * j].
  QD_HD static I row_tables(const uint8_t (*tables)[16], const uint8_t* codes) {
    I v = _mm512_castsi128_si512(table(tables, codes[0]));
    v = _mm512_inserti32x4(v, table(tables, codes[4]), 1);
    v = _mm512_inserti32x4(v, table(tables, codes[8]), 2);
    return _mm512_inserti32x4(v, table(tables, codes[12]), 3);
  }
  // Byte i: that of its lane of `table` which byte i of `index`, below 16, names.
  QD_HD static I look_up(I table, I index) { return _mm512_shuffle_epi8(table, index); }
  // The same for the words of each lane whose bit is set, `other` elsewhere.
  template <int kWords>
  QD_HD static I look_up_words(I other, I table, I index) {
    constexpr uint64_t kLane =
        (kWords & 1) * 0xf + (kWords >> 1 & 1) * 0xf0 + (kWords >> 2 & 1) * 0xf00 + (kWords >> 3 & 1) * 0xf000;
    return _mm512_mask_shuffle_epi8(other, kLane * 0x0001000100010001u, table, index);
  }
  // Bytes 0..7 and 8..15 of each lane, unsigned, as 16-bit numbers.
  QD_HD static I widen_low(I v) { return _mm512_unpacklo_epi8(v, _mm512_setzero_si512()); }
  QD_HD static I widen_high(I v) { return _mm512_unpackhi_epi8(v, _mm512_setzero_si512()); }
  // acc + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1] of signed 16-bit numbers.
  QD_HD static I dot_pairs(I acc, I a, I b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(acc, a, b);
#else
    acc = _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
    asm("" : "+v"(acc));  // WHY: g++ rebalances long integer sums into trees, which do not fit the registers
    return acc;
#endif
  }
  // Each lane: the sums of two neighbours of `low`, then of `high`.
  QD_HD static I add_pairs(I low, I high) {
    const F a = as_float(low), b = as_float(high);
    return _mm512_add_epi32(as_int(_mm512_shuffle_ps(a, b, 0x88)), as_int(_mm512_shuffle_ps(a, b, 0xdd)));
  }
  // The units of kLanes e4m3 codes (e4m3_unit of body/w4a8_vllm_table.h); NaN stays NaN.
  QD_HD static F e4m3_units(const uint8_t* codes) {
    const I code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const I exponent = _mm512_and_si512(_mm512_slli_epi32(code, 20), set_i(15 << 23));
    const I unit = _mm512_add_epi32(_mm512_max_epi32(exponent, set_i(1 << 23)), set_i(117 << 23));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(_mm512_and_si512(code, set_i(0x7f)), set_i(0x7f));
    return as_float(_mm512_mask_mov_epi32(unit, nan, set_i(0x7fffffff)));
  }

 private:
  // q of 16 nibbles as bf16, 0 .. 7 and -8 .. -1, twice.
  QD_HD static I bf16_of_nibbles() {
    const __m256i once = _mm256_setr_epi16(0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,  //
                                           -0x3f00, -0x3f20, -0x3f40, -0x3f60, -0x3f80, -0x3fc0, -0x4000, -0x4080);
    return _mm512_broadcast_i64x4(once);
  }
  QD_HD static __m128i table(const uint8_t (*tables)[16], uint8_t code) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(tables[code]));
  }
  QD_HD static __mmask16 mask(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
  QD_HD static F widen(__m256i bf16) { return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
