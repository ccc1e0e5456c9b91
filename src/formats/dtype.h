// SPDX-License-Identifier: Apache-2.0
// The element types that safetensors knows, their names in a header and their widths.
// Names are case sensitive; a sub-byte type counts logical elements.
#pragma once

#include <optional>
#include <string_view>

namespace quadrille::formats {

enum class DType {
  kBool,
  kU8,
  kI8,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64,
  kC64,     // two f32
  kF8E4M3,  // the FN variant: no infinity, largest value 448
  kF8E5M2,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kF6E2M3,
  kF6E3M2,
  kF4,  // E2M1
};
inline constexpr int kNumDTypes = 22;

// "BF16", "F8_E4M3", ...: the name in a header.
const char* dtype_name(DType dtype);
// Nothing for a name that the format does not know.
std::optional<DType> dtype_from_name(std::string_view name);
// Bits an element: 4, 6, 8, 16, 32 or 64.
int dtype_bits(DType dtype);

}  // namespace quadrille::formats
