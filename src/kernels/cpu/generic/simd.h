// SPDX-License-Identifier: Apache-2.0
// The vocabulary of the baseline x86-64 unit (SSE2): 4 fp32 lanes, an fma in software. Only generic/isa.cpp includes
// it.
#pragma once

#include <emmintrin.h>

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::kernels::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 4;
  static constexpr int kTileVectors = 2;
  static constexpr int kTileTokens = 5;
  // Whether products of many tokens decode weights again for every tile instead of filling a panel (measured).
  static constexpr bool kDirectAlways = false;
  // Vectors of rows that the direct kernels take at once for 1, 2, and more tokens.
  static constexpr int kDirectVectors1 = 4;
  static constexpr int kDirectVectors2 = 2;
  static constexpr int kDirectVectors3 = 1;
  // The same for the bf16 product, whose chains are long: enough of them to hide the latency of an fma.
  static constexpr int kBf16Vectors1 = 4;
  static constexpr int kBf16Vectors2 = 2;
  static constexpr int kBf16Vectors3 = 1;
  static constexpr bool kByteTables = false;  // SSE2 does not look bytes up
  using F = __m128;
  using I = __m128i;

  QD_HD static F zero() { return _mm_setzero_ps(); }
  QD_HD static F set(float x) { return _mm_set1_ps(x); }
  QD_HD static F load(const float* p) { return _mm_loadu_ps(p); }
  QD_HD static void store(float* p, F v) { _mm_storeu_ps(p, v); }
  QD_HD static F load_part(const float* p, int64_t count) {
    alignas(16) float buffer[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
    return _mm_load_ps(buffer);
  }
  QD_HD static void store_part(float* p, F v, int64_t count) {
    alignas(16) float buffer[kLanes];
    _mm_store_ps(buffer, v);
    for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
  }

  QD_HD static F add(F a, F b) { return _mm_add_ps(a, b); }
  QD_HD static F sub(F a, F b) { return _mm_sub_ps(a, b); }
  QD_HD static F mul(F a, F b) { return _mm_mul_ps(a, b); }
  QD_HD static F div(F a, F b) { return _mm_div_ps(a, b); }
  // The second operand where either is NaN, as in SSE.
  QD_HD static F min(F a, F b) { return _mm_min_ps(a, b); }
  QD_HD static F max(F a, F b) { return _mm_max_ps(a, b); }
  // Correctly rounded: the product of two fp32 is exact in double; the double sum is rounded to odd, and a value that
  // was rounded to odd at 53 bits rounds to 24 bits as the exact sum would (53 >= 24 + 2).
  QD_HD static F fma(F a, F b, F c) {
    const __m128 low = _mm_cvtpd_ps(fma_to_odd(a, b, c));
    const __m128 high = _mm_cvtpd_ps(fma_to_odd(_mm_movehl_ps(a, a), _mm_movehl_ps(b, b), _mm_movehl_ps(c, c)));
    return _mm_movelh_ps(low, high);
  }
  // fma whose product a * b is known to be exact in fp32: then a product and a sum round once, as an fma does.
  QD_HD static F fma_exact(F a, F b, F c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
  QD_HD static F abs(F a) { return _mm_and_ps(a, as_float(set_i(0x7fffffff))); }
  QD_HD static F negate(F a) { return _mm_xor_ps(a, as_float(set_i(INT32_MIN))); }

  QD_HD static I set_i(int32_t x) { return _mm_set1_epi32(x); }
  QD_HD static I as_int(F v) { return _mm_castps_si128(v); }
  QD_HD static F as_float(I v) { return _mm_castsi128_ps(v); }
  QD_HD static I add_i(I a, I b) { return _mm_add_epi32(a, b); }
  QD_HD static I sub_i(I a, I b) { return _mm_sub_epi32(a, b); }
  template <int kBits>
  QD_HD static I shift_left(I v) {
    return _mm_slli_epi32(v, kBits);
  }
  template <int kBits>
  QD_HD static I shift_right_signed(I v) {
    return _mm_srai_epi32(v, kBits);
  }

  // value where x is a number, else the canonical NaN of fp32.
  QD_HD static F number_or_nan(F x, F value) {
    return as_float(choose(as_int(_mm_cmpunord_ps(x, x)), set_i(0x7fffffff), as_int(value)));
  }
  // Lanes first .. last-1 of a row of lanes that starts at `index` keep v, all others get `other`.
  QD_HD static F keep_range(F v, F other, int64_t index, int64_t first, int64_t last) {
    const I lane = _mm_add_epi32(_mm_setr_epi32(0, 1, 2, 3), set_i(static_cast<int32_t>(index)));
    const I low = _mm_cmpgt_epi32(set_i(static_cast<int32_t>(first)), lane);
    const I kept = _mm_andnot_si128(low, _mm_cmpgt_epi32(set_i(static_cast<int32_t>(last)), lane));
    return as_float(choose(kept, as_int(v), as_int(other)));
  }

  QD_HD static F load_bf16(const uint16_t* p) {
    const I narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return as_float(_mm_unpacklo_epi16(_mm_setzero_si128(), narrow));
  }
  QD_HD static F load_bf16_part(const uint16_t* p, int64_t count) {
    alignas(16) uint16_t buffer[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
    return load_bf16(buffer);
  }
  // Nearest even, kept in fp32; NaN gives 0x7FFF0000.
  QD_HD static F round_bf16(F x) {
    const I u = as_int(x);
    const I odd = _mm_and_si128(_mm_srli_epi32(u, 16), set_i(1));
    const I sum = _mm_add_epi32(u, _mm_add_epi32(odd, set_i(0x7fff)));
    const I kept = _mm_and_si128(sum, set_i(static_cast<int32_t>(0xffff0000u)));
    return as_float(choose(as_int(_mm_cmpunord_ps(x, x)), set_i(0x7fff0000), kept));
  }

  // kLanes e4m3 codes -> values (numerics::e4m3_to_f32).
  QD_HD static F load_e4m3(const uint8_t* p) {
    const I code = _mm_setr_epi32(p[0], p[1], p[2], p[3]);
    const I magnitude = _mm_and_si128(code, set_i(0x7f));
    const I sign = _mm_slli_epi32(_mm_xor_si128(code, magnitude), 24);
    const F subnormal = _mm_mul_ps(_mm_cvtepi32_ps(magnitude), set(0x1p-9f));
    const I normal = _mm_add_epi32(_mm_slli_epi32(magnitude, 20), set_i(120 << 23));
    I value = choose(_mm_cmpgt_epi32(magnitude, set_i(7)), normal, as_int(subnormal));
    value = _mm_or_si128(value, sign);
    return as_float(choose(_mm_cmpeq_epi32(magnitude, set_i(0x7f)), set_i(0x7fffffff), value));
  }
  // numerics::e4m3_from_f32 of each lane.
  QD_HD static void store_e4m3(uint8_t* p, F x) {
    const I u = as_int(x);
    const I a = _mm_and_si128(u, set_i(0x7fffffff));
    const I sign = _mm_and_si128(_mm_srli_epi32(u, 24), set_i(0x80));
    const I odd = _mm_and_si128(_mm_srli_epi32(a, 20), set_i(1));
    const I rounded = _mm_add_epi32(a, _mm_add_epi32(odd, set_i(0x7ffff)));
    const I normal = _mm_sub_epi32(_mm_srli_epi32(rounded, 20), set_i(120 << 3));
    const I small = _mm_sub_epi32(as_int(_mm_add_ps(as_float(a), set(16384.0f))), as_int(set(16384.0f)));
    I code = choose(_mm_cmpgt_epi32(as_int(set(0x1p-6f)), a), small, normal);
    code = choose(_mm_cmpgt_epi32(as_int(set(448.0f)), a), code, set_i(0x7e));
    code = _mm_or_si128(code, sign);
    code = choose(_mm_cmpgt_epi32(a, set_i(0x7f800000)), set_i(0x7f), code);
    alignas(16) int32_t lanes[kLanes];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), code);
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(lanes[i]);
  }
  // The value of E4(v) for |v| far below 2^100; NaN stays NaN. The added number has the unit of e4m3 at v's size.
  QD_HD static F round_e4m3(F v) {
    const I exponent = _mm_and_si128(as_int(v), set_i(0x7f800000));
    // Exponent fields order as numbers do; SSE2 has no 32-bit integer maximum.
    const I floor = as_int(_mm_max_ps(as_float(exponent), set(0x1p-6f)));
    const F magic = as_float(_mm_add_epi32(floor, set_i((20 << 23) | 0x400000)));
    const F rounded = _mm_sub_ps(_mm_add_ps(v, magic), magic);
    return _mm_max_ps(set(-448.0f), _mm_min_ps(set(448.0f), rounded));
  }

  // kLanes words of eight nibbles, and the value q of nibble J of each.
  QD_HD static I load_words(const uint32_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  template <int J>
  QD_HD static F nibble(I words) {
    const I high = J == 7 ? words : _mm_slli_epi32(words, 28 - 4 * J);
    return _mm_cvtepi32_ps(_mm_srai_epi32(high, 28));
  }

  // The tree of numerics::lane_tree over 32 lanes: distances 16, 8, 4, 2, 1.
  QD_HD static float tree32(const F* lanes) {
    const F low = _mm_add_ps(_mm_add_ps(lanes[0], lanes[4]), _mm_add_ps(lanes[2], lanes[6]));
    const F high = _mm_add_ps(_mm_add_ps(lanes[1], lanes[5]), _mm_add_ps(lanes[3], lanes[7]));
    const F v4 = _mm_add_ps(low, high);
    const F v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
  }

 private:
  QD_HD static I choose(I condition, I yes, I no) {
    return _mm_or_si128(_mm_and_si128(condition, yes), _mm_andnot_si128(condition, no));
  }
  // The low two lanes: a * b + c in double, rounded to odd (two-sum finds the error of the double sum).
  QD_HD static __m128d fma_to_odd(F a, F b, F c) {
    const __m128d product = _mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b));
    const __m128d addend = _mm_cvtps_pd(c);
    const __m128d sum = _mm_add_pd(product, addend);
    const __m128d part = _mm_sub_pd(sum, product);
    const __m128d error = _mm_add_pd(_mm_sub_pd(product, _mm_sub_pd(sum, part)), _mm_sub_pd(addend, part));
    const __m128i bits = _mm_castpd_si128(sum);
    // Where the sum is inexact and even: one unit away from zero if the error has the sign of the sum, else towards it.
    const __m128d inexact = _mm_and_pd(_mm_cmpord_pd(error, error), _mm_cmpneq_pd(error, _mm_setzero_pd()));
    const __m128i even = _mm_cmpeq_epi32(_mm_and_si128(bits, _mm_set_epi32(0, 1, 0, 1)), _mm_setzero_si128());
    const __m128i even64 = _mm_shuffle_epi32(even, _MM_SHUFFLE(2, 2, 0, 0));
    const __m128i opposite = _mm_castpd_si128(_mm_xor_pd(sum, error));
    const __m128i sign = _mm_shuffle_epi32(_mm_srai_epi32(opposite, 31), _MM_SHUFFLE(3, 3, 1, 1));
    const __m128i step = _mm_or_si128(sign, _mm_set_epi32(0, 1, 0, 1));  // -1 where the signs differ, else +1
    const __m128i change = _mm_and_si128(step, _mm_and_si128(even64, _mm_castpd_si128(inexact)));
    return _mm_castsi128_pd(_mm_add_epi64(bits, change));
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
