// SPDX-License-Identifier: Apache-2.0
#include "formats/dtype.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

namespace quadrille::formats {
namespace {

// Names and widths as the format's own description lists them.
const std::map<std::string, int> kWidths = {
    {"BOOL", 8},        {"U8", 8},      {"I8", 8},      {"I16", 16},    {"U16", 16},    {"F16", 16},
    {"BF16", 16},       {"I32", 32},    {"U32", 32},    {"F32", 32},    {"F64", 64},    {"I64", 64},
    {"U64", 64},        {"C64", 64},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}};

TEST(DType, NamesAndWidthsAreTheFormats) {
  ASSERT_EQ(kWidths.size(), static_cast<size_t>(kNumDTypes));
  for (const auto& [name, bits] : kWidths) {
    const auto dtype = dtype_from_name(name);
    ASSERT_TRUE(dtype.has_value()) << name;
    EXPECT_EQ(dtype_name(*dtype), name);
    EXPECT_EQ(dtype_bits(*dtype), bits) << name;
  }
}

TEST(DType, EnumAndNamesAgree) {
  EXPECT_EQ(dtype_from_name("BF16"), DType::kBF16);
  EXPECT_EQ(dtype_from_name("C64"), DType::kC64);
  EXPECT_EQ(dtype_from_name("F8_E4M3"), DType::kF8E4M3);
  EXPECT_EQ(dtype_from_name("F4"), DType::kF4);
}

TEST(DType, UnknownNamesAreNothing) {
  for (const char* name : {"", "bf16", "BF16 ", "FLOAT", "F8_E4M3FN", "I4"})
    EXPECT_FALSE(dtype_from_name(name)) << name;
}

}  // namespace
}  // namespace quadrille::formats
