// SPDX-License-Identifier: Apache-2.0
// Codecs and row quantisation against tables that torch wrote.
#include <gtest/gtest.h>

#include <cmath>

#include "numerics/act_quant.h"
#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e8m0.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/fp8_e5m2.h"
#include "support/golden.h"
#include "support/tensors.h"

namespace quadrille::numerics {
namespace {

const testing::Tensors& golden() {
  static const testing::Tensors tensors(testing::data_path("kernels/fp8.safetensors"));
  return tensors;
}

template <typename Decode>
void expect_values(const char* name, Decode decode) {
  const auto values = golden().get<float>(name);
  for (size_t code = 0; code < values.size(); ++code) {
    const float found = decode(static_cast<uint8_t>(code));
    if (std::isnan(values[code])) {
      EXPECT_TRUE(std::isnan(found)) << name << " " << code;
    } else {
      EXPECT_EQ(bits_of(found), bits_of(values[code])) << name << " " << code;
    }
  }
}

TEST(GoldenCodecs, ValuesOfAllCodes) {
  expect_values("e4m3_values", e4m3_to_f32);
  expect_values("e5m2_values", e5m2_to_f32);
  expect_values("e8m0_values", e8m0_to_f32);
  expect_values("e2m1_values", e2m1_to_f32);
}

// The golden encoder keeps the sign of NaN; ours is canonical.
uint8_t canonical_code(uint8_t code) {
  return e4m3_is_nan(code) ? kCanonicalNanE4m3 : code;
}

TEST(GoldenCodecs, E4m3OfFp32) {
  const auto inputs = golden().get<float>("f32_inputs");
  const auto codes = golden().get<uint8_t>("f32_codes");
  for (size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_EQ(e4m3_from_f32(inputs[i]), canonical_code(codes[i])) << inputs[i];
  }
}

TEST(GoldenCodecs, E4m3OfEveryBf16) {
  const auto codes = golden().get<uint8_t>("bf16_codes");
  ASSERT_EQ(codes.size(), 65536u);
  for (size_t i = 0; i < codes.size(); ++i) {
    ASSERT_EQ(e4m3_from_f32(bf16_to_f32(static_cast<uint16_t>(i))), canonical_code(codes[i])) << i;
  }
}

TEST(GoldenCodecs, QuantisedRows) {
  const auto input = golden().get<uint16_t>("rows_input");
  const auto codes = golden().get<uint8_t>("rows_codes");
  const auto scales = golden().get<float>("rows_scale");
  const size_t k = input.size() / scales.size();
  for (size_t row = 0; row < scales.size(); ++row) {
    float absmax = 0.0f;
    for (size_t i = 0; i < k; ++i) absmax = absmax_step(absmax, bf16_to_f32(input[row * k + i]));
    const float scale = act_scale_of_absmax(absmax);
    ASSERT_EQ(bits_of(scale), bits_of(scales[row])) << row;
    for (size_t i = 0; i < k; ++i) {
      ASSERT_EQ(act_code(bf16_to_f32(input[row * k + i]), scale), codes[row * k + i]) << row << " " << i;
    }
  }
}

}  // namespace
}  // namespace quadrille::numerics
