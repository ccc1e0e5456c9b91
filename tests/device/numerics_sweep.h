// SPDX-License-Identifier: Apache-2.0
// The shared functions of numerics/ as functions of a number: argument `index` of a sweep, and the bits of the result.
// numerics_test.cpp calls it on the host, numerics_sweep.cu on the device.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "device/handles.h"
#include "device/random_data.h"
#include "numerics/act_quant.h"
#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "numerics/exp.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/group_scale.h"
#include "numerics/silu.h"

namespace quadrille::testing {

enum class Sweep : int {
  kExp,
  kSigmoid,
  kSilu,
  kGeluTanh,
  kE4m3OfF32,
  kBf16OfF32,
  kActScale,
  kActCode,
  kActivationF32,
  kActivationExact,
  kActivationVllm,
  kGroupScaleCode,
  kChannelScale,
  kE4m3Tables,
  kCount
};

// All bf16 values as fp32, then random bits.
QD_HD uint32_t sweep_bits(int64_t index) {
  if (index < 65536) return static_cast<uint32_t>(index) << 16;
  return static_cast<uint32_t>(hash(0x5eed, static_cast<uint64_t>(index)) >> 20);
}
// A second argument: half of them of moderate size, so that the functions are not always at their ends.
QD_HD float second_argument(int64_t index) {
  const uint64_t h = hash(0xb175, static_cast<uint64_t>(index));
  if ((h & 1) != 0) return numerics::float_of(static_cast<uint32_t>(h >> 20));
  return normal_number(0x77, static_cast<uint64_t>(index)) * 4.0f;
}

QD_HD numerics::ActivationRule sweep_rule(int64_t index) {
  numerics::ActivationRule rule;
  const int64_t kind = index % 5;
  if (kind == 1) rule.kind = numerics::Activation::kClampedSwiglu;
  if (kind == 2) rule.kind = numerics::Activation::kGeluTanh;
  if (kind == 3) rule.kind = numerics::Activation::kRelu2;
  if (kind == 4) {
    rule = {numerics::Activation::kClampedSwiglu, 1.0f, numerics::float_of(0x7f800000u), 0.0f};
  }
  return rule;
}

// A scale as rows have it: of a largest magnitude that is a bf16 value, at least |x| in every second case.
QD_HD float sweep_scale(int64_t index, float x) {
  const uint32_t top = static_cast<uint32_t>(hash(0x5ca1e, static_cast<uint64_t>(index)) >> 30 & 0x7fffu) << 16;
  const float magnitude = numerics::absmax_step(0.0f, numerics::float_of(top));
  return numerics::act_scale_of_absmax(index % 2 == 0 ? magnitude : numerics::absmax_step(magnitude, x));
}

// Codes, channel scales and table entries: the index names the codes.
QD_HD uint32_t e4m3_table_bits(int64_t index) {
  const auto code = static_cast<uint8_t>(index & 255);
  const int entry = static_cast<int>(index >> 8 & 15);
  return numerics::bits_of(numerics::e4m3_to_f32(code)) ^ static_cast<uint32_t>(numerics::group_scale8_code(code)) ^
         static_cast<uint32_t>(numerics::lut_code(code, entry & 7)) << 8 ^
         static_cast<uint32_t>(numerics::vllm_weight_code(code, entry - 8)) << 16;
}

QD_HD uint32_t sweep_result(Sweep function, int64_t index) {
  using numerics::bits_of;
  const float x = numerics::float_of(sweep_bits(index));
  switch (function) {
    case Sweep::kExp:
      return bits_of(numerics::exp_f32(x));
    case Sweep::kSigmoid:
      return bits_of(numerics::sigmoid(x));
    case Sweep::kSilu:
      return bits_of(numerics::silu(x));
    case Sweep::kGeluTanh:
      return bits_of(numerics::gelu_tanh(x));
    case Sweep::kE4m3OfF32:
      return numerics::e4m3_from_f32(x);
    case Sweep::kBf16OfF32:
      return numerics::bf16_from_f32(x);
    case Sweep::kActScale:
      return bits_of(numerics::act_scale_of_absmax(numerics::absmax_step(0.0f, x)));
    case Sweep::kActCode:
      return numerics::act_code(x, sweep_scale(index, x));
    case Sweep::kActivationF32:
      return bits_of(numerics::activation_f32(sweep_rule(index), x, second_argument(index)));
    case Sweep::kActivationExact:
      return bits_of(numerics::activation_exact(sweep_rule(index), x, second_argument(index)));
    case Sweep::kActivationVllm:
      return bits_of(numerics::activation_vllm(sweep_rule(index), x, second_argument(index)));
    case Sweep::kGroupScaleCode:
      return numerics::group_scale_code(numerics::round_to_bf16(x), sweep_scale(index, x));
    case Sweep::kChannelScale: {
      const float scale = numerics::channel_scale_of_absmax(numerics::absmax_step(0.0f, x));
      return bits_of(numerics::channel_scale8(scale));
    }
    default:
      return e4m3_table_bits(index);
  }
}

// out[i] = sweep_result(function, i) on the device.
void run_sweep(Sweep function, uint32_t* out, int64_t count, device::Stream stream);

// Comparisons that need no host; `result` [2]: how many arguments differ, and the largest of those (+ 1).
// The hardware's e4m3 conversion and e4m3_from_f32: all 2^32 fp32 values, in both places of a pair.
void compare_e4m3_conversion(uint64_t* result, device::Stream stream);
// The quantiser's corrected reciprocal and division: all 2^30 pairs of significands.
void compare_bf16_quotient(uint64_t* result, device::Stream stream);
// The quantiser's codes and act_code: all bf16 values under the scale of every bf16 maximum that is not below them.
void compare_row_codes(uint64_t* result, device::Stream stream);

}  // namespace quadrille::testing
