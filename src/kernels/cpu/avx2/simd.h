// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the AVX2 + FMA unit: 8 fp32 lanes. Only avx2/isa.cpp includes it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::kernels::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 8;
  // Register tile of the panel kernels: 12 chains, two weight vectors and one broadcast fill 15 of 16 registers.
  static constexpr int kTileVectors = 2;
  static constexpr int kTileTokens = 6;
  // Whether products of many tokens decode weights again for every tile instead of filling a panel (measured).
  static constexpr bool kDirectAlways = false;
  // Vectors of rows that the direct kernels take at once for 1, 2, and more tokens.
  static constexpr int kDirectVectors1 = 2;
  static constexpr int kDirectVectors2 = 2;
  static constexpr int kDirectVectors3 = 1;
  // The same for the bf16 product, whose chains are long: enough of them to hide the latency of an fma.
  static constexpr int kBf16Vectors1 = 8;
  static constexpr int kBf16Vectors2 = 4;
  static constexpr int kBf16Vectors3 = 2;
  using F = __m256;
  using I = __m256i;

  QD_HD static F zero() { return _mm256_setzero_ps(); }
  QD_HD static F set(float x) { return _mm256_set1_ps(x); }
  QD_HD static F load(const float* p) { return _mm256_loadu_ps(p); }
  QD_HD static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  QD_HD static F load_part(const float* p, int64_t count) { return _mm256_maskload_ps(p, mask(count)); }
  QD_HD static void store_part(float* p, F v, int64_t count) { _mm256_maskstore_ps(p, mask(count), v); }

  QD_HD static F add(F a, F b) { return _mm256_add_ps(a, b); }
  QD_HD static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  QD_HD static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  QD_HD static F div(F a, F b) { return _mm256_div_ps(a, b); }
  // The second operand where either is NaN, as in SSE.
  QD_HD static F min(F a, F b) { return _mm256_min_ps(a, b); }
  QD_HD static F max(F a, F b) { return _mm256_max_ps(a, b); }
  QD_HD static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // fma whose product a * b is known to be exact in fp32.
  QD_HD static F fma_exact(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  QD_HD static F abs(F a) { return _mm256_and_ps(a, as_float(set_i(0x7fffffff))); }
  QD_HD static F negate(F a) { return _mm256_xor_ps(a, as_float(set_i(INT32_MIN))); }

  QD_HD static I set_i(int32_t x) { return _mm256_set1_epi32(x); }
  QD_HD static I as_int(F v) { return _mm256_castps_si256(v); }
  QD_HD static F as_float(I v) { return _mm256_castsi256_ps(v); }
  QD_HD static I add_i(I a, I b) { return _mm256_add_epi32(a, b); }
  QD_HD static I sub_i(I a, I b) { return _mm256_sub_epi32(a, b); }
  template <int kBits>
  QD_HD static I shift_left(I v) {
    return _mm256_slli_epi32(v, kBits);
  }
  template <int kBits>
  QD_HD static I shift_right_signed(I v) {
    return _mm256_srai_epi32(v, kBits);
  }

  // value where x is a number, else the canonical NaN of fp32.
  QD_HD static F number_or_nan(F x, F value) {
    return _mm256_blendv_ps(value, as_float(set_i(0x7fffffff)), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  // Lanes first .. last-1 of a row of lanes that starts at `index` keep v, all others get `other`.
  QD_HD static F keep_range(F v, F other, int64_t index, int64_t first, int64_t last) {
    const I lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), set_i(static_cast<int32_t>(index)));
    const I low = _mm256_cmpgt_epi32(set_i(static_cast<int32_t>(first)), lane);
    const I kept = _mm256_andnot_si256(low, _mm256_cmpgt_epi32(set_i(static_cast<int32_t>(last)), lane));
    return _mm256_blendv_ps(other, v, as_float(kept));
  }

  QD_HD static F load_bf16(const uint16_t* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  QD_HD static F load_bf16_part(const uint16_t* p, int64_t count) {
    alignas(16) uint16_t buffer[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
    return load_bf16(buffer);
  }
  // Nearest even, kept in fp32; NaN gives 0x7FFF0000.
  QD_HD static F round_bf16(F x) {
    const I u = as_int(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), set_i(1));
    const I sum = _mm256_add_epi32(u, _mm256_add_epi32(odd, set_i(0x7fff)));
    const I kept = _mm256_and_si256(sum, set_i(static_cast<int32_t>(0xffff0000u)));
    return _mm256_blendv_ps(as_float(kept), as_float(set_i(0x7fff0000)), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }

  // kLanes e4m3 codes -> values (numerics::e4m3_to_f32).
  QD_HD static F load_e4m3(const uint8_t* p) {
    const I code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const I magnitude = _mm256_and_si256(code, set_i(0x7f));
    const I sign = _mm256_slli_epi32(_mm256_xor_si256(code, magnitude), 24);
    const F subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), set(0x1p-9f));
    const I normal = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), set_i(120 << 23));
    I value = choose(_mm256_cmpgt_epi32(magnitude, set_i(7)), normal, as_int(subnormal));
    value = _mm256_or_si256(value, sign);
    return as_float(choose(_mm256_cmpeq_epi32(magnitude, set_i(0x7f)), set_i(0x7fffffff), value));
  }
  // numerics::e4m3_from_f32 of each lane.
  QD_HD static void store_e4m3(uint8_t* p, F x) {
    const I u = as_int(x);
    const I a = _mm256_and_si256(u, set_i(0x7fffffff));
    const I sign = _mm256_and_si256(_mm256_srli_epi32(u, 24), set_i(0x80));
    const I odd = _mm256_and_si256(_mm256_srli_epi32(a, 20), set_i(1));
    const I rounded = _mm256_add_epi32(a, _mm256_add_epi32(odd, set_i(0x7ffff)));
    const I normal = _mm256_sub_epi32(_mm256_srli_epi32(rounded, 20), set_i(120 << 3));
    const I small = _mm256_sub_epi32(as_int(_mm256_add_ps(as_float(a), set(16384.0f))), as_int(set(16384.0f)));
    I code = choose(_mm256_cmpgt_epi32(as_int(set(0x1p-6f)), a), small, normal);
    code = choose(_mm256_cmpgt_epi32(as_int(set(448.0f)), a), code, set_i(0x7e));
    code = _mm256_or_si256(code, sign);
    code = choose(_mm256_cmpgt_epi32(a, set_i(0x7f800000)), set_i(0x7f), code);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  // The value of E4(v) for |v| far below 2^100; NaN stays NaN. The added number has the unit of e4m3 at v's size.
  QD_HD static F round_e4m3(F v) {
    const I exponent = _mm256_and_si256(as_int(v), set_i(0x7f800000));
    const I floor = _mm256_max_epi32(exponent, as_int(set(0x1p-6f)));
    const F magic = as_float(_mm256_add_epi32(floor, set_i((20 << 23) | 0x400000)));
    const F rounded = _mm256_sub_ps(_mm256_add_ps(v, magic), magic);
    return _mm256_max_ps(set(-448.0f), _mm256_min_ps(set(448.0f), rounded));
  }

  // kLanes words of eight nibbles, and the value q of nibble J of each.
  QD_HD static I load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  template <int J>
  QD_HD static F nibble(I words) {
    const I high = J == 7 ? words : _mm256_slli_epi32(words, 28 - 4 * J);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(high, 28));
  }

  // The tree of numerics::lane_tree over 32 lanes: distances 16, 8, 4, 2, 1.
  QD_HD static float tree32(const F* lanes) {
    const F v8 = _mm256_add_ps(_mm256_add_ps(lanes[0], lanes[2]), _mm256_add_ps(lanes[1], lanes[3]));
    const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
  }

  // Bytes, and sums of their products with 16-bit integers: the integer form of `vllm` (body/w4a8_vllm.h). A lane here
  // is 16 bytes, a word 4.
  static constexpr bool kByteTables = true;
  static constexpr int kIntegerSums = 12;  // registers for sums
  QD_HD static I load_i(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
  QD_HD static void store_i(void* p, I v) { _mm256_storeu_si256(static_cast<I*>(p), v); }
  // 16 bytes into every lane.
  QD_HD static I load_quarter(const void* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  QD_HD static I and_i(I a, I b) { return _mm256_and_si256(a, b); }
  template <int kBits>
  QD_HD static I shift_right(I v) {
    return _mm256_srli_epi32(v, kBits);
  }
  QD_HD static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  // Word j of register i <-> word i of register j, in every lane.
  QD_HD static void transpose4(I (&v)[4]) {
    const I a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const I c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm256_unpacklo_epi64(a, c);
    v[1] = _mm256_unpackhi_epi64(a, c);
    v[2] = _mm256_unpacklo_epi64(b, d);
    v[3] = _mm256_unpackhi_epi64(b, d);
  }
  // Lane j: the table of codes[4 * j].
  QD_HD static I row_tables(const uint8_t (*tables)[16], const uint8_t* codes) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(table(tables, codes[0])), table(tables, codes[4]), 1);
  }
  // Byte i: that of its lane of `table` which byte i of `index`, below 16, names.
  QD_HD static I look_up(I table, I index) { return _mm256_shuffle_epi8(table, index); }
  // The same for the words of each lane whose bit is set, `other` elsewhere.
  template <int kWords>
  QD_HD static I look_up_words(I other, I table, I index) {
    return _mm256_blend_epi32(other, _mm256_shuffle_epi8(table, index), kWords * 0x11);
  }
  // Bytes 0..7 and 8..15 of each lane, unsigned, as 16-bit numbers.
  QD_HD static I widen_low(I v) { return _mm256_unpacklo_epi8(v, _mm256_setzero_si256()); }
  QD_HD static I widen_high(I v) { return _mm256_unpackhi_epi8(v, _mm256_setzero_si256()); }
  // acc + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1] of signed 16-bit numbers.
  QD_HD static I dot_pairs(I acc, I a, I b) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
    asm("" : "+x"(acc));  // WHY: g++ rebalances long integer sums into trees, which do not fit the registers
    return acc;
  }
  // Each lane: the sums of two neighbours of `low`, then of `high`.
  QD_HD static I add_pairs(I low, I high) {
    const F a = as_float(low), b = as_float(high);
    return _mm256_add_epi32(as_int(_mm256_shuffle_ps(a, b, 0x88)), as_int(_mm256_shuffle_ps(a, b, 0xdd)));
  }
  // The units of kLanes e4m3 codes (e4m3_unit of body/w4a8_vllm_table.h); NaN stays NaN.
  QD_HD static F e4m3_units(const uint8_t* codes) {
    const I code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const I exponent = _mm256_and_si256(_mm256_slli_epi32(code, 20), set_i(15 << 23));
    const I unit = _mm256_add_epi32(_mm256_max_epi32(exponent, set_i(1 << 23)), set_i(117 << 23));
    const I nan = _mm256_cmpeq_epi32(_mm256_and_si256(code, set_i(0x7f)), set_i(0x7f));
    return as_float(choose(nan, set_i(0x7fffffff), unit));
  }

 private:
  QD_HD static __m128i table(const uint8_t (*tables)[16], uint8_t code) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(tables[code]));
  }
  QD_HD static I mask(int64_t count) {
    return _mm256_cmpgt_epi32(set_i(static_cast<int32_t>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  QD_HD static I choose(I condition, I yes, I no) { return _mm256_blendv_epi8(no, yes, condition); }
  QD_HD static F widen(__m128i bf16) { return as_float(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16)); }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
