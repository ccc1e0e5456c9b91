// SPDX-License-Identifier: Apache-2.0
// The sixteen weights E4(s8 * q) of every group scale s8 as integers: s8 and all its products are multiples of one
// power of two, the unit of s8, and none exceeds kLargestWeight units. Constants alone; the vllm bodies and a test use
// them.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/int4.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kWeightBias = 128;     // tables hold weight + 128: an unsigned byte
constexpr int kLargestWeight = 120;  // 15 * 8: q = -8 only moves the exponent, so nothing is rounded
constexpr int kNanUnits = 1 << 24;   // stands for NaN among activations in units of 2^-9

// The distance of neighbours of the code's value: 2^(exponent - 10), exponents counted from 1.
QD_HD constexpr float e4m3_unit(uint8_t code) {
  const uint32_t exponent = (code >> 3) & 15u;
  if (numerics::e4m3_is_nan(code)) return numerics::e4m3_to_f32(code);
  return numerics::float_of(((exponent == 0 ? 1u : exponent) + 117u) << 23);
}

struct VllmTables {
  uint8_t weight[256][16] = {};  // [s8 code][nibble] E4(s8 * q) in units of s8, plus kWeightBias; NaN: any
  int32_t activation[256] = {};  // [code] value in units of 2^-9, at most 448 * 512; NaN: kNanUnits
};

constexpr VllmTables make_vllm_tables() {
  VllmTables tables;
  for (int code = 0; code < 256; ++code) {
    const auto s8 = static_cast<uint8_t>(code);
    const bool nan = numerics::e4m3_is_nan(s8);
    const float value = numerics::e4m3_to_f32(s8);
    tables.activation[code] = nan ? kNanUnits : static_cast<int32_t>(value * 512.0f);
    for (int nibble = 0; nibble < 16; ++nibble) {
      const auto q = static_cast<float>(nibble < 8 ? nibble : nibble - 16);
      const float weight = nan ? 0.0f : numerics::e4m3_to_f32(numerics::e4m3_from_f32(value * q)) / e4m3_unit(s8);
      tables.weight[code][nibble] = static_cast<uint8_t>(static_cast<int>(weight) + kWeightBias);
    }
  }
  return tables;
}

alignas(64) constexpr VllmTables kVllmTables = make_vllm_tables();

}  // namespace
}  // namespace quadrille::kernels::cpu
