// SPDX-License-Identifier: Apache-2.0
// One k32 step of the tensor-core model for 16 outputs at once. A product of two e4m3 values is exact in fp32 and so is
// its product with a power of two, hence "align to 2^(top - 13), toward zero" is a conversion to integer.
#pragma once

#include <cstdint>

#include "kernels/ref/hopper_kernels.h"
#include "numerics/hopper_k32.h"

namespace quadrille::kernels::ref {

inline constexpr int kModelLanes = 16;
inline constexpr int kModelStep = 32;
// Exponents are stored as e + 6 (0..14); a zero factor takes no part in the maximum and has this instead.
inline constexpr int8_t kNoExponent = -64;

// e4m3 code -> value, exponent for the maximum; NaN is value 0 and a flag.
struct ModelOperand {
  float value;
  int8_t exponent;
  uint8_t nan;
};

inline ModelOperand model_operand(uint8_t code) {
  if (numerics::e4m3_is_nan(code)) return {0.0f, kNoExponent, 1};
  const bool zero = numerics::e4m3_significand(code) == 0;
  return {numerics::e4m3_to_f32(code), static_cast<int8_t>(zero ? kNoExponent : numerics::e4m3_exponent(code) + 6), 0};
}

// The weights of one step for 16 out features.
struct StepWeights {
  alignas(64) float value[kModelStep][kModelLanes];
  alignas(64) int8_t exponent[kModelStep][kModelLanes];
  alignas(64) int32_t nan[kModelLanes];  // 1: one of the lane's 32 weights is NaN
};

// One row's activations of the step; positions behind k are zeros.
struct StepRow {
  alignas(64) float value[kModelStep];
  alignas(64) int8_t exponent[kModelStep];
  int32_t nan;
};

// c[16] = hopper_k32(row, weights[lane], c[lane]). c must come from a chain that began at +0 (zero, NaN, or an exponent
// within +-60): numerics::hopper_k32 has no such limit.
QD_ALWAYS_INLINE void model_step(const StepRow& row, const StepWeights& w, float* c) {
  int8_t top8[kModelLanes];
  for (int l = 0; l < kModelLanes; ++l) top8[l] = -128;
  for (int i = 0; i < kModelStep; ++i) {
    const int8_t a = row.exponent[i];
    for (int l = 0; l < kModelLanes; ++l) {
      const int8_t e = static_cast<int8_t>(a + w.exponent[i][l]);
      top8[l] = top8[l] > e ? top8[l] : e;
    }
  }
  alignas(64) float scale[kModelLanes];
  alignas(64) float back[kModelLanes];
  alignas(64) int32_t sum[kModelLanes];
  alignas(64) int32_t nan[kModelLanes];
  for (int l = 0; l < kModelLanes; ++l) {
    const uint32_t bits = numerics::bits_of(c[l]);
    const int32_t c_magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
    nan[l] = (c_magnitude > 0x7f800000 ? 1 : 0) | w.nan[l] | row.nan;
    // Lanes with nothing non-zero keep an exponent that is harmless: their sum is 0 whatever the unit.
    const int32_t c_exponent = c_magnitude == 0 || nan[l] != 0 ? -60 : (c_magnitude >> 23) - 127;
    int32_t top = top8[l] >= 0 ? top8[l] - 12 : -60;
    top = top > c_exponent ? top : c_exponent;
    scale[l] = numerics::float_of(static_cast<uint32_t>(140 - top) << 23);
    back[l] = numerics::float_of(static_cast<uint32_t>(top + 114) << 23);
    const float kept = nan[l] != 0 ? 0.0f : c[l];
    sum[l] = static_cast<int32_t>(kept * scale[l]);
  }
  for (int i = 0; i < kModelStep; ++i) {
    const float a = row.value[i];
    for (int l = 0; l < kModelLanes; ++l) sum[l] += static_cast<int32_t>(a * w.value[i][l] * scale[l]);
  }
  for (int l = 0; l < kModelLanes; ++l) {
    // |sum| < 2^21 is exact in fp32; clearing ten bits leaves 13 fraction bits, toward zero.
    const uint32_t kept = numerics::bits_of(static_cast<float>(sum[l])) & 0xfffffc00u;
    const float result = numerics::float_of(kept) * back[l];
    c[l] = nan[l] != 0 ? numerics::float_of(numerics::kCanonicalNanF32) : result;
  }
}

}  // namespace quadrille::kernels::ref
