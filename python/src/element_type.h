// SPDX-License-Identifier: Apache-2.0
// The element types that tensors may have here, their names in Python, and how DLPack spells them.
#pragma once

#include <cstdint>
#include <string>

#include "dlpack.h"
#include "quadrille/c_host.h"

namespace quadrille::python {

// Values are those of QD_TYPE_..., then what c_host.h has no name for.
enum class ElementType : int32_t {
  kBf16 = QD_TYPE_BF16,
  kF16 = QD_TYPE_F16,
  kF32 = QD_TYPE_F32,
  kE4m3 = QD_TYPE_E4M3,
  kI32 = QD_TYPE_I32,
  kI8 = QD_TYPE_I8,
  kU8 = QD_TYPE_U8,
  kU16 = 7,
};

struct ElementTypeTraits {
  const char* name;
  int64_t bytes;
  dlpack::DataType dlpack;  // e4m3 travels as bytes: numpy and older consumers know no such type
};
inline const ElementTypeTraits& traits_of(ElementType type) {
  static constexpr ElementTypeTraits kTraits[] = {
      {"bfloat16", 2, {dlpack::kBfloat, 16, 1}}, {"float16", 2, {dlpack::kFloat, 16, 1}},
      {"float32", 4, {dlpack::kFloat, 32, 1}},   {"float8_e4m3fn", 1, {dlpack::kUint, 8, 1}},
      {"int32", 4, {dlpack::kInt, 32, 1}},       {"int8", 1, {dlpack::kInt, 8, 1}},
      {"uint8", 1, {dlpack::kUint, 8, 1}},       {"uint16", 2, {dlpack::kUint, 16, 1}},
  };
  return kTraits[static_cast<int32_t>(type)];
}

// A set of element types that an argument may have.
struct ElementTypes {
  uint32_t bits = 0;
  constexpr ElementTypes(std::initializer_list<ElementType> types) {
    for (const ElementType type : types) bits |= 1u << static_cast<uint32_t>(type);
  }
  constexpr bool has(ElementType type) const { return (bits >> static_cast<uint32_t>(type) & 1u) != 0; }
  std::string text() const {
    std::string names;
    for (int32_t i = 0; i <= static_cast<int32_t>(ElementType::kU16); ++i) {
      const auto type = static_cast<ElementType>(i);
      if (has(type)) names += (names.empty() ? "" : " or ") + std::string(traits_of(type).name);
    }
    return names;
  }
};

}  // namespace quadrille::python
