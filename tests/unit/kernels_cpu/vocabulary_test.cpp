// SPDX-License-Identifier: Apache-2.0
// The software fma of the baseline unit against libm, and the list of tables that the registry offers.
#include <cmath>
#include <limits>

#include "cpu_tables.h"
#include "kernels/api/registry.h"
#include "kernels/cpu/generic/simd.h"

namespace quadrille::kernels::test {
namespace {

void expect_fma(const float (&a)[4], const float (&b)[4], const float (&c)[4]) {
  using cpu::Simd;
  float found[4];
  Simd::store(found, Simd::fma(Simd::load(a), Simd::load(b), Simd::load(c)));
  for (int i = 0; i < 4; ++i) {
    const float expected = std::fma(a[i], b[i], c[i]);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(found[i]));
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(expected), std::bit_cast<uint32_t>(found[i]))
        << a[i] << " * " << b[i] << " + " << c[i];
  }
}

// Bit patterns at random: every exponent, subnormal results, overflow.
TEST(SoftwareFma, RandomBits) {
  std::mt19937 random(1);
  for (int i = 0; i < 500000; ++i) {
    float a[4], b[4], c[4];
    for (int l = 0; l < 4; ++l) {
      a[l] = std::bit_cast<float>(static_cast<uint32_t>(random()));
      b[l] = std::bit_cast<float>(static_cast<uint32_t>(random()));
      c[l] = std::bit_cast<float>(static_cast<uint32_t>(random()));
    }
    expect_fma(a, b, c);
  }
}

// Addends of every distance from the product, where double rounding would show: c is a fp32 whose half unit the exact
// product nearly reaches.
TEST(SoftwareFma, HalfwayCases) {
  std::mt19937 random(2);
  for (int i = 0; i < 500000; ++i) {
    float a[4], b[4], c[4];
    for (int l = 0; l < 4; ++l) {
      const auto mantissa = static_cast<uint32_t>(random());
      a[l] = std::bit_cast<float>(0x3f800000u | (mantissa & 0x7u) << 20 | (mantissa >> 8 & 1u));
      b[l] = std::bit_cast<float>(0x3f800000u | (mantissa >> 3 & 0x7u) << 20 | (mantissa >> 9 & 1u));
      const int distance = static_cast<int>(mantissa >> 10 & 63u) - 8;
      c[l] = std::ldexp(std::bit_cast<float>(0x3f800000u | (mantissa >> 16 & 0x3u)), distance);
      if (mantissa >> 31 != 0) c[l] = -c[l];
    }
    expect_fma(a, b, c);
  }
}

TEST(SoftwareFma, SpecialValues) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float values[] = {0.0f, -0.0f, 1.0f, -1.0f, inf, -inf, nan, 1e-45f, -1e-45f, 1e-38f, 3.4e38f, -3.4e38f};
  for (const float a : values) {
    for (const float b : values) {
      for (const float c : values) expect_fma({a, a, 1, 2}, {b, b, 3, 4}, {c, c, 5, 6});
    }
  }
}

TEST(Registry, ListsTheCpuTablesBestFirst) {
  std::vector<std::string> names;
  for (const KernelTable* table : all_tables()) names.emplace_back(table->name);
  ASSERT_GE(names.size(), 4u);
  EXPECT_EQ(names[0], "amx");
  EXPECT_EQ(names[1], "avx512");
  EXPECT_EQ(names[2], "avx2");
  EXPECT_EQ(names[3], "generic");
}

TEST(Registry, TakesTheBestTableThatRuns) {
  const auto best = select_table("");
  ASSERT_TRUE(best);
  for (const KernelTable* table : all_tables()) {
    if (table->by_name_only || !table->unavailable_reason().empty()) continue;
    EXPECT_STREQ((*best)->name, table->name);
    break;
  }
}

}  // namespace
}  // namespace quadrille::kernels::test
