// SPDX-License-Identifier: Apache-2.0
// Every code of every format against its definition (sign, exponent, mantissa), and rounding against a search for the
// nearest value: the grid points, the middles between them and the fp32 neighbours of both.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "numerics/bf16.h"
#include "numerics/e2m1.h"
#include "numerics/e8m0.h"
#include "numerics/fp16.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/fp8_e5m2.h"

namespace quadrille::numerics {
namespace {

// A small float format, by its definition.
struct Format {
  const char* name;
  int exponent_bits;
  int mantissa_bits;
  int bias;
  bool has_infinity;  // IEEE specials in the top exponent; otherwise only the all-ones code is NaN (or nothing is)
  bool has_nan;
  std::function<float(uint32_t)> decode;
  std::function<uint32_t(float)> encode;

  int num_magnitudes() const { return 1 << (exponent_bits + mantissa_bits); }
  uint32_t sign_bit() const { return static_cast<uint32_t>(num_magnitudes()); }
  int num_finite() const {
    if (has_infinity) return num_magnitudes() - (1 << mantissa_bits);
    return has_nan ? num_magnitudes() - 1 : num_magnitudes();
  }
  double value(int magnitude) const {
    const int field = magnitude >> mantissa_bits;
    const int mantissa = magnitude & ((1 << mantissa_bits) - 1);
    if (field == 0) return std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return std::ldexp(mantissa + (1 << mantissa_bits), field - bias - mantissa_bits);
  }
};

std::vector<Format> formats() {
  return {
      {"e4m3", 4, 3, 7, false, true, [](uint32_t c) { return e4m3_to_f32(static_cast<uint8_t>(c)); }, e4m3_from_f32},
      {"e5m2", 5, 2, 15, true, true, [](uint32_t c) { return e5m2_to_f32(static_cast<uint8_t>(c)); },
       [](float x) { return e5m2_from_f32(x, false); }},
      {"e2m1", 2, 1, 1, false, false, [](uint32_t c) { return e2m1_to_f32(static_cast<uint8_t>(c)); }, e2m1_from_f32},
      {"bf16", 8, 7, 127, true, true, [](uint32_t c) { return bf16_to_f32(static_cast<uint16_t>(c)); }, bf16_from_f32},
      {"fp16", 5, 10, 15, true, true, [](uint32_t c) { return f16_to_f32(static_cast<uint16_t>(c)); }, f16_from_f32},
  };
}

TEST(Codecs, EveryCodeDecodesToItsDefinition) {
  for (const Format& format : formats()) {
    for (int m = 0; m < format.num_finite(); ++m) {
      ASSERT_EQ(format.decode(static_cast<uint32_t>(m)), format.value(m)) << format.name << " " << m;
      const float negative = format.decode(static_cast<uint32_t>(m) | format.sign_bit());
      ASSERT_EQ(negative, -format.value(m)) << format.name << " " << m;
      ASSERT_TRUE(std::signbit(negative)) << format.name << " " << m;
    }
    for (int m = format.num_finite(); m < format.num_magnitudes(); ++m) {
      const float value = format.decode(static_cast<uint32_t>(m));
      const bool infinite = format.has_infinity && m == format.num_finite();
      ASSERT_TRUE(infinite ? std::isinf(value) : std::isnan(value)) << format.name << " " << m;
    }
  }
}

TEST(Codecs, EveryFiniteCodeComesBack) {
  for (const Format& format : formats()) {
    for (int m = 0; m < format.num_finite(); ++m) {
      for (const uint32_t sign : {0u, format.sign_bit()}) {
        const uint32_t code = static_cast<uint32_t>(m) | sign;
        ASSERT_EQ(format.encode(format.decode(code)), code) << format.name;
      }
    }
  }
}

// Nearest even among neighbours m and m + 1; x lies between them.
uint32_t nearest(const Format& format, int m, double x) {
  const double low = x - format.value(m), high = format.value(m + 1) - x;
  if (low != high) return static_cast<uint32_t>(low < high ? m : m + 1);
  return static_cast<uint32_t>(m % 2 == 0 ? m : m + 1);
}

TEST(Codecs, RoundsToNearestEvenAtEveryMiddle) {
  for (const Format& format : formats()) {
    for (int m = 0; m + 1 < format.num_finite(); ++m) {
      const float middle = static_cast<float>((format.value(m) + format.value(m + 1)) / 2);
      const float near[] = {middle, std::nextafterf(middle, 0.0f), std::nextafterf(middle, INFINITY),
                            std::nextafterf(static_cast<float>(format.value(m)), INFINITY),
                            std::nextafterf(static_cast<float>(format.value(m + 1)), 0.0f)};
      for (const float x : near) {
        if (x < format.value(m) || x > format.value(m + 1)) continue;  // bf16 subnormals: no fp32 between
        ASSERT_EQ(format.encode(x), nearest(format, m, x)) << format.name << " " << x;
        ASSERT_EQ(format.encode(-x), nearest(format, m, x) | format.sign_bit()) << format.name << " " << -x;
      }
    }
  }
}

TEST(Codecs, NanIsCanonical) {
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffc00000u, 0x7fc00000u}) {
    EXPECT_EQ(bf16_from_f32(float_of(bits)), 0x7fff);
    EXPECT_EQ(f16_from_f32(float_of(bits)), 0x7fff);
    EXPECT_EQ(e4m3_from_f32(float_of(bits)), 0x7f);
    EXPECT_EQ(e5m2_from_f32(float_of(bits), true), 0x7f);
    EXPECT_EQ(e5m2_from_f32(float_of(bits), false), 0x7f);
    EXPECT_EQ(e8m0_from_f32(float_of(bits), true), 0xff);
    EXPECT_EQ(bits_of(canonical(float_of(bits))), 0x7fffffffu);
  }
  EXPECT_EQ(bits_of(e4m3_to_f32(0xff)), 0x7fffffffu);
  EXPECT_EQ(bits_of(round_to_bf16(float_of(0xffc00001u))), 0x7fff0000u);
}

TEST(Codecs, SaturatesAndOverflows) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float largest = std::numeric_limits<float>::max();
  for (const float x : {448.0f, 463.0f, 464.0f, 465.0f, 1e9f, largest, infinity}) {
    EXPECT_EQ(e4m3_from_f32(x), 0x7e) << x;
    EXPECT_EQ(e4m3_from_f32(-x), 0xfe) << x;
  }
  EXPECT_EQ(e5m2_from_f32(61439.0f, false), 0x7b);
  EXPECT_EQ(e5m2_from_f32(61440.0f, false), 0x7c);
  EXPECT_EQ(e5m2_from_f32(61440.0f, true), 0x7b);
  EXPECT_EQ(e5m2_from_f32(-infinity, true), 0xfb);
  EXPECT_EQ(e2m1_from_f32(1e9f), 7);
  EXPECT_EQ(e2m1_from_f32(-infinity), 15);
  EXPECT_EQ(f16_from_f32(65519.0f), 0x7bff);
  EXPECT_EQ(f16_from_f32(65520.0f), 0x7c00);
  EXPECT_EQ(bf16_from_f32(largest), 0x7f80);
  EXPECT_EQ(bf16_from_f32(-infinity), 0xff80);
}

TEST(Codecs, E8m0) {
  for (int code = 0; code < 255; ++code) {
    const float value = e8m0_to_f32(static_cast<uint8_t>(code));
    ASSERT_EQ(value, std::ldexp(1.0, code - 127)) << code;
    ASSERT_EQ(e8m0_from_f32(value, false), code);
    ASSERT_EQ(e8m0_from_f32(value, true), code);
    const float above = std::nextafterf(value, INFINITY);
    ASSERT_EQ(e8m0_from_f32(above, false), code);
    ASSERT_EQ(e8m0_from_f32(above, true), code == 254 ? 254 : code + 1);
  }
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
  EXPECT_EQ(e8m0_from_f32(0.0f, true), 255);
  EXPECT_EQ(e8m0_from_f32(-1.0f, true), 255);
  EXPECT_EQ(e8m0_from_f32(1e-45f, false), 0);
  EXPECT_EQ(e8m0_from_f32(INFINITY, false), 254);
}

// Values from checkpoints in the field, computed elsewhere.
TEST(Codecs, KnownValues) {
  const std::pair<float, int> known[] = {{0.1f, 0x1d},  {1.0f, 0x38},    {1.0625f, 0x38},  {1.1875f, 0x3a},
                                         {3.3f, 0x45},  {17.0f, 0x58},   {19.0f, 0x5a},    {447.0f, 0x7e},
                                         {-5.7f, 0xcb}, {0x1p-9f, 0x01}, {0x1p-10f, 0x00}, {0x1.8p-10f, 0x01},
                                         {-0.0f, 0x80}};
  for (const auto& [x, code] : known) EXPECT_EQ(e4m3_from_f32(x), code) << x;
}

// The maps are usable at compile time.
static_assert(bf16_from_f32(1.00390625f) == 0x3f80);
static_assert(e4m3_to_f32(e4m3_from_f32(3.3f)) == 3.25f);
static_assert(f16_to_f32(f16_from_f32(0x1p-24f)) == 0x1p-24f);

}  // namespace
}  // namespace quadrille::numerics
