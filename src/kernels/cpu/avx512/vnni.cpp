// SPDX-License-Identifier: Apache-2.0
// The digits form of the avx512 table with VNNI: four products of bytes summed into a 32-bit lane by one instruction.
// Reached through its struct alone, which the driver takes where the processor has AVX512_VNNI.
#include "kernels/cpu/avx512/digits.h"

namespace quadrille::kernels::cpu {
namespace {

struct VnniDigits : Digits {
  static constexpr int64_t kMostRows = INT64_MAX;
  QD_HD static I first(int32_t start) { return Simd::set_i(start); }
  QD_HD static I dot(I sum, I weights, I digits) { return _mm512_dpbusd_epi32(sum, weights, digits); }
  QD_HD static I total(const I (&sum)[3], int32_t) {
    const I high = _mm512_add_epi32(_mm512_slli_epi32(sum[2], 8), sum[1]);
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), sum[0]);
  }
};

}  // namespace

constinit const DigitParts kAvx512VnniDigits = digit_parts<VnniDigits>();

}  // namespace quadrille::kernels::cpu
