// SPDX-License-Identifier: Apache-2.0
#include "formats/dtype.h"

#include <array>

#include "core/check.h"

namespace quadrille::formats {
namespace {

struct Entry {
  const char* name;
  int bits;
};

// In the order of the enum.
constexpr std::array<Entry, kNumDTypes> kEntries{{
    {"BOOL", 8},        {"U8", 8},      {"I8", 8},      {"I16", 16},    {"U16", 16},    {"F16", 16},
    {"BF16", 16},       {"I32", 32},    {"U32", 32},    {"F32", 32},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"C64", 64},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4},
}};

const Entry& entry(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  QD_CHECK(index < kEntries.size(), "a dtype outside of the enum");
  return kEntries[index];
}

}  // namespace

const char* dtype_name(DType dtype) {
  return entry(dtype).name;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kEntries.size(); ++i)
    if (name == kEntries[i].name) return static_cast<DType>(i);
  return std::nullopt;
}

int dtype_bits(DType dtype) {
  return entry(dtype).bits;
}

}  // namespace quadrille::formats
