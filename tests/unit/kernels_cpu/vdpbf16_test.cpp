// SPDX-License-Identifier: Apache-2.0
// The table `vdpbf16`: what the instruction does to constructed operands, and its W4A8 product against the scalar
// statement of its order, bit for bit.
#include <array>
#include <cfenv>

#include "kernels/cpu/cpuid.h"
#include "w4_problem.h"

namespace quadrille::kernels::test {
namespace {

class Vdpbf16 : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = table().unavailable_reason();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  static const KernelTable& table() { return cpu::kVdpbf16Table; }

  void expect_bits(const W4Problem& problem) {
    const Buffer<float> expected = problem.expected();
    contexts_.each(
        [&](const KernelContext& context) { EXPECT_TRUE(same_bits(expected, problem.run(table(), context))); });
  }
  void expect_bits_here(const W4Problem& problem) {
    ThreadPool pool(1);
    Arena arena;
    EXPECT_TRUE(same_bits(problem.expected(), problem.run(table(), {&pool, &arena})));
  }
  static W4Case of(W4Case setup) {
    setup.pairs = true;
    return setup;
  }
  Contexts contexts_;
};

// One lane of vdpbf16ps, by the instruction itself: acc + high * high and low * low of the pairs a and b.
uint32_t instruction(uint32_t acc, uint32_t a, uint32_t b) {
  alignas(64) uint32_t lanes[3][16];
  for (int i = 0; i < 16; ++i) lanes[0][i] = acc, lanes[1][i] = a, lanes[2][i] = b;
  asm volatile(
      "vmovups (%0), %%zmm0\n\t"
      "vmovups 64(%0), %%zmm1\n\t"
      "vdpbf16ps 128(%0), %%zmm1, %%zmm0\n\t"
      "vmovups %%zmm0, (%0)\n\t"
      "vzeroupper"
      :
      : "r"(lanes)
      : "memory", "xmm0", "xmm1");
  return lanes[0][7];
}

uint32_t pair_of(float high, float low) {
  return std::bit_cast<uint32_t>(high) | std::bit_cast<uint32_t>(low) >> 16;  // both exact in bf16
}
uint32_t instruction(float acc, float high_a, float high_b, float low_a, float low_b) {
  return instruction(std::bit_cast<uint32_t>(acc), pair_of(high_a, low_a), pair_of(high_b, low_b));
}
uint32_t bits(float value) {
  return std::bit_cast<uint32_t>(value);
}

// 2^24 + 1 rounds back to 2^24, 2^24 - 1 does not: who comes first shows.
TEST_F(Vdpbf16, TheHighHalfComesFirstAndEachHalfIsAnFma) {
  EXPECT_EQ(instruction(0x1p24f, 1, 1, -1, 1), bits(0x1p24f - 1));  // the high half: 2^24 + 1 -> 2^24, then - 1
  EXPECT_EQ(instruction(0x1p24f, -1, 1, 1, 1), bits(0x1p24f));
  EXPECT_EQ(instruction(-1, 0x1p12f, 0x1p12f, 1, 1), bits(0x1p24f));  // 2^24 - 1, then + 1: neither is rounded
  EXPECT_EQ(instruction(0x1p-20f, 0x1.02p0f, 0x1.02p0f, -1, 1),
            bits(std::fma(-1.0f, 1.0f, std::fma(0x1.02p0f, 0x1.02p0f, 0x1p-20f))));
}

// Subnormal operands count as zeros of their sign, subnormal sums become zeros; "subnormal" is told after rounding to
// 24 bits. None of this can happen in the product: its terms are multiples of 2^-18.
TEST_F(Vdpbf16, SubnormalsAreFlushed) {
  const float least = 0x1p-126f;
  EXPECT_EQ(instruction(0x1p-130f, 0, 0, 0, 0), bits(0.0f));
  EXPECT_EQ(instruction(0x80000001u, pair_of(-0.0f, -0.0f), 0), bits(-0.0f));
  EXPECT_EQ(instruction(0, 0, 0, 0x1p-127f, 0x1p10f), bits(0.0f));
  EXPECT_EQ(instruction(least, 0, 0, -0x1p-64f, 0x1p-63f), bits(0.0f));
  EXPECT_EQ(instruction(-least, 0, 0, 0x1p-64f, 0x1p-63f), bits(-0.0f));
  EXPECT_EQ(instruction(least, 0, 0, -0x1p-75f, 0x1p-75f), bits(0.0f));  // 1 - 2^-24 of it: 24 bits, below
  EXPECT_EQ(instruction(least, 0, 0, -0x1p-75f, 0x1p-76f), bits(least));
  // The high half's sum is flushed before the low half.
  EXPECT_EQ(instruction(least, -0x1p-64f, 0x1p-63f, 0x1p-63f, 0x1p-63f), bits(least));
}

TEST_F(Vdpbf16, TheRoundingModeIsNotReadAndNanAndInfinityAreAsInAnFma) {
  std::fesetround(FE_UPWARD);
  const uint32_t upward = instruction(1.0f, 0, 0, 0x1p-12f, 0x1p-15f);
  std::fesetround(FE_TONEAREST);
  EXPECT_EQ(upward, bits(1.0f));
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isnan(std::bit_cast<float>(instruction(0.0f, inf, 0, 1, 1))));
  EXPECT_TRUE(std::isnan(std::bit_cast<float>(instruction(0u, 0x7fff0000u, 0u))));
  EXPECT_EQ(instruction(0.0f, inf, 1, 1, 1), bits(inf));
  EXPECT_EQ(instruction(0.0f, -0.0f, 1, -0.0f, 1), bits(0.0f));
}

// A million random pairs of every exponent that the product has, against two fmas.
TEST_F(Vdpbf16, RandomPairs) {
  Random random(1);
  int other_order = 0;
  for (int i = 0; i < 200000; ++i) {
    const auto number = [&] {
      return numerics::e4m3_to_f32(static_cast<uint8_t>(random.below(0x7f) | random.below(2) << 7));
    };
    const float a[2] = {number(), number()}, b[2] = {number(), number()};
    const float acc = std::ldexp(random.normal(), static_cast<int>(random.below(30)) - 12);
    const float expected = std::fma(a[0], b[0], std::fma(a[1], b[1], acc));
    ASSERT_EQ(instruction(acc, a[1], b[1], a[0], b[0]), bits(expected));
    other_order += bits(std::fma(a[1], b[1], std::fma(a[0], b[0], acc))) != bits(expected) ? 1 : 0;
  }
  EXPECT_GT(other_order, 1000) << "the operands cannot tell the orders apart";
}

constexpr std::array kNumerics = {Numerics::kExact, Numerics::kVllm};

TEST_F(Vdpbf16, GroupSizesAndRowCounts) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t group : {32, 64, 128, 0}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 25}) {
        SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
        expect_bits_here(W4Problem(of({numerics, 48, 256 + (group == 0 ? 0 : 3 * group), group, {rows}}), 1));
      }
    }
  }
}

TEST_F(Vdpbf16, EveryRowCountUpTo130) {
  for (const Numerics numerics : kNumerics) {
    expect_every_row_count(W4Problem(of({numerics, 40, 96, 32, {130}}), 2), table());
    if (HasFatalFailure()) return;
  }
}

TEST_F(Vdpbf16, TailsOfRowsAndOfK) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t n : {8, 16, 24, 32, 40, 72}) {
      for (const int64_t rows : {1, 3, 9}) {
        SCOPED_TRACE("n " + std::to_string(n) + " rows " + std::to_string(rows));
        expect_bits_here(W4Problem(of({numerics, n, 64, 32, {rows}, false, true}), 3));
      }
    }
    for (const int64_t k : {8, 24, 32, 40, 120, 128, 136, 264, 376, 520}) {
      for (const int64_t rows : {1, 3, 14}) {
        SCOPED_TRACE("k " + std::to_string(k) + " rows " + std::to_string(rows));
        expect_bits_here(W4Problem(of({numerics, 24, k, 0, {rows}}), 4));
      }
    }
  }
}

TEST_F(Vdpbf16, GroupedRowsWithEmptyExpertsGatherAndBiasOnAnyNumberOfThreads) {
  for (const Numerics numerics : kNumerics) {
    expect_bits(W4Problem(of({numerics, 136, 256, 64, {0, 3, 0, 1, 17, 0, 2, 140, 0}, true, true}), 5));
    expect_bits(W4Problem(of({numerics, 264, 512, 128, {1, 1, 0, 0, 1, 1}, true, false}), 6));
    expect_bits(W4Problem(of({numerics, 96, 128, 32, {0, 0, 0}}), 8));
  }
}

// The largest codes beside small ones: the sums round, and the order shows.
void fill_with_extremes(W4Problem& problem) {
  Random random(12);
  for (uint8_t& code : problem.act()) {
    const int64_t kind = random.below(4);
    code = kind == 0 ? static_cast<uint8_t>(1 + random.below(7)) : (kind == 1 ? 0x7e : 0x7d);
  }
}

TEST_F(Vdpbf16, SumsThatRound) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t rows : {1, 2, 4, 15}) {
      W4Problem problem(of({numerics, 64, 256, 128, {rows}}), 11);
      fill_with_extremes(problem);
      expect_bits_here(problem);
      W4Problem cpu_order({numerics, 64, 256, 128, {rows}}, 11);
      fill_with_extremes(cpu_order);
      EXPECT_FALSE(same_bits(problem.expected(), cpu_order.expected())) << "these sums cannot tell the orders apart";
    }
  }
}

TEST_F(Vdpbf16, NanInfinityAndZeroRows) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t rows : {6, 20}) {
      W4Problem problem(of({numerics, 40, 128, 64, {rows}, false, true}), 13);
      problem.set_special_values();
      expect_bits(problem);
    }
  }
}

// Every group scale of `vllm` with every q, also where all q of a NaN scale are zero.
TEST_F(Vdpbf16, EveryScaleOfVllm) {
  W4Problem problem(of({Numerics::kVllm, 256, 128, 128, {2}}), 14);
  for (int64_t row = 0; row < 256; ++row) problem.set_scale(0, row, 0, 0, static_cast<uint8_t>(row));
  expect_bits_here(problem);
  problem.set_weights(0);
  expect_bits_here(problem);
}

TEST_F(Vdpbf16, BlockScales) {
  for (const int64_t group : {32, 64, 128, 0}) {
    for (const int64_t rows : {1, 2, 5, 8, 13, 25}) {
      SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
      const int64_t k = group == 128 ? 384 : 320;
      expect_bits_here(W4Problem(of({Numerics::kExact, 40, k, group, {rows}, false, false, true}), 17));
    }
  }
  for (const int64_t k : {8, 120, 136, 264}) {
    expect_bits_here(W4Problem(of({Numerics::kExact, 24, k, 0, {3}, false, false, true}), 18));
  }
  expect_bits(W4Problem(of({Numerics::kExact, 136, 256, 64, {0, 3, 0, 1, 17, 0, 2, 90, 0}, true, true, true}), 19));
}

}  // namespace
}  // namespace quadrille::kernels::test
