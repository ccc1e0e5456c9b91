// SPDX-License-Identifier: Apache-2.0
// The integer form of the `vllm` product: its tables over all codes, and its bits at the borders of what it takes.
#include <array>
#include <cmath>

#include "kernels/cpu/body/w4a8_vllm_table.h"
#include "kernels/cpu/cpuid.h"
#include "kernels/cpu/drive.h"
#include "w4_problem.h"

namespace quadrille::kernels::test {
namespace {

TEST(VllmTables, WeightsTimesTheirUnitAreTheRoundedProducts) {
  int largest = 0;
  for (int code = 0; code < 256; ++code) {
    const auto s8 = static_cast<uint8_t>(code);
    if (numerics::e4m3_is_nan(s8)) {
      EXPECT_TRUE(std::isnan(cpu::e4m3_unit(s8))) << code;
      continue;
    }
    const float unit = cpu::e4m3_unit(s8);
    int exponent = 0;
    EXPECT_EQ(std::frexp(unit, &exponent), 0.5f) << code;
    for (int nibble = 0; nibble < 16; ++nibble) {
      const float q = static_cast<float>(nibble < 8 ? nibble : nibble - 16);
      const float expected = numerics::e4m3_to_f32(numerics::e4m3_from_f32(numerics::e4m3_to_f32(s8) * q));
      const int weight = cpu::kVllmTables.weight[code][nibble] - cpu::kWeightBias;
      EXPECT_EQ(static_cast<float>(weight) * unit, expected) << code << " " << nibble;
      largest = std::max(largest, std::abs(weight));
    }
  }
  EXPECT_EQ(largest, cpu::kLargestWeight);
}

TEST(VllmTables, ActivationsInUnitsOfTheSmallest) {
  for (int code = 0; code < 256; ++code) {
    const auto c = static_cast<uint8_t>(code);
    if (numerics::e4m3_is_nan(c)) {
      EXPECT_EQ(cpu::kVllmTables.activation[code], cpu::kNanUnits);
    } else {
      EXPECT_EQ(static_cast<float>(cpu::kVllmTables.activation[code]), numerics::e4m3_to_f32(c) * 512.0f) << code;
    }
  }
}

class W4A8Vllm : public CpuTable {
 protected:
  void expect_exact_bits(const W4Problem& problem) {
    ThreadPool pool(1);
    Arena arena;
    EXPECT_TRUE(same_bits(problem.expected(), problem.run(table(), {&pool, &arena})));
  }
};

// Activations of one magnitude: nothing rounds inside a step, so every step takes the integer form; then every step
// holds codes from both ends of the range and none does; then a mixture.
enum class Spread { kNarrow, kWide, kMixed };

uint8_t activation(Random& random, Spread spread) {
  const bool wide = spread == Spread::kWide || (spread == Spread::kMixed && random.below(40) == 0);
  const auto sign = static_cast<uint8_t>(random.below(2) << 7);
  if (wide) return static_cast<uint8_t>(sign | (random.below(2) == 0 ? 1 + random.below(7) : 0x7e - random.below(4)));
  return random.below(8) == 0 ? sign : static_cast<uint8_t>(sign | (0x48 + random.below(48)));
}

TEST_P(W4A8Vllm, EverySpreadGroupAndTokenCount) {
  Random random(1);
  for (const Spread spread : {Spread::kNarrow, Spread::kWide, Spread::kMixed}) {
    for (const int64_t group : {32, 64, 128, 0}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 71}) {
        SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
        W4Problem problem({Numerics::kVllm, 24, 288, group, {rows}}, 2);
        for (uint8_t& code : problem.act()) code = activation(random, spread);
        expect_exact_bits(problem);
      }
    }
  }
}

TEST_P(W4A8Vllm, EveryGroupScale) {
  for (const int64_t rows : {1, 2, 9}) {
    W4Problem problem({Numerics::kVllm, 256, 64, 64, {rows}}, 3);
    for (int64_t row = 0; row < 256; ++row) problem.set_scale(0, row, 0, 0, static_cast<uint8_t>(row));
    expect_exact_bits(problem);
  }
}

TEST_P(W4A8Vllm, TailsOfSteps) {
  Random random(4);
  for (const int64_t k : {8, 32, 40, 96, 104, 136, 160, 232, 256, 264}) {
    for (const int64_t rows : {1, 2, 5}) {
      SCOPED_TRACE("k " + std::to_string(k) + " rows " + std::to_string(rows));
      W4Problem problem({Numerics::kVllm, 56, k, 0, {rows, 0, 1}, true, true}, 5);
      for (uint8_t& code : problem.act()) code = activation(random, Spread::kMixed);
      expect_exact_bits(problem);
    }
  }
}

// Sums that just fit 24 bits, and one more: 120 * sum(|x|) against 2^24 of the lowest bit. 16 values of 2^e and a low
// bit of 2^(e - d) meet it between d = 13 and d = 14; 16 bits of x between d = 14 and d = 15.
TEST_P(W4A8Vllm, AtTheBorderOfExactness) {
  for (const int64_t rows : {1, 3}) {
    for (int low = 1; low < 0x50; ++low) {
      W4Problem problem({Numerics::kVllm, 16, 64, 32, {rows}}, static_cast<uint32_t>(low));
      Random random(6);
      for (size_t i = 0; i < problem.act().size(); ++i) {
        const auto sign = static_cast<uint8_t>(random.below(2) << 7);
        problem.act()[i] = static_cast<uint8_t>(sign | (i % 32 == 7 ? low : 0x77 + random.below(8)));
      }
      expect_exact_bits(problem);
    }
  }
}

TEST_P(W4A8Vllm, NanInOneStepOfOneToken) {
  for (const int64_t rows : {1, 2, 8}) {
    W4Problem problem({Numerics::kVllm, 40, 256, 128, {rows}}, 7);
    Random random(8);
    for (uint8_t& code : problem.act()) code = activation(random, Spread::kNarrow);
    problem.act()[static_cast<size_t>((rows - 1) * 256 + 200)] = 0xff;
    problem.set_scale(0, 3, 1, 0, 0x7f);
    expect_exact_bits(problem);
  }
}

// What a machine with AVX-512 and without VNNI runs.
TEST(W4A8VllmForms, Avx512WithoutVnni) {
  const std::string reason = cpu::avx512_unavailable_reason();
  if (!reason.empty()) GTEST_SKIP() << reason;
  cpu::IsaParts parts = cpu::kAvx512Parts;
  parts.vllm_vnni = nullptr;
  ThreadPool pool(1);
  Arena arena;
  for (const int64_t group : {32, 64, 128}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 30}) {
      const W4Problem problem({Numerics::kVllm, 40, 384, group, {rows}}, 9);
      W4A8Gemm gemm = problem.problem(nullptr);
      Buffer<float> out = poisoned(rows * gemm.n);
      gemm.out = out.data();
      cpu::drive_w4a8_gemm(parts, gemm, {&pool, &arena});
      EXPECT_TRUE(same_bits(problem.expected(), out)) << "group " << group << " rows " << rows;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, W4A8Vllm, every_cpu_table(), table_name);

}  // namespace
}  // namespace quadrille::kernels::test
