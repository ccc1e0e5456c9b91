// SPDX-License-Identifier: Apache-2.0
// The forms of the `exact` W4A8 product, each forced: fma chains, digits by pairs of bytes, digits by VNNI. Bit for bit
// the scalar statement of the CPU order, on both sides of the bound where the digits give way to the chains.
#include <array>

#include "kernels/cpu/cpuid.h"
#include "kernels/cpu/drive.h"
#include "w4_problem.h"

namespace quadrille::kernels::test {
namespace {

// A unit with one digits form, or none, for any number of rows.
struct Form {
  const char* name = nullptr;
  const cpu::IsaParts* unit = nullptr;
  const cpu::DigitParts* digits = nullptr;  // null: fma chains
  std::string unavailable;
};

std::string vnni_unavailable_reason() {
  const std::string reason = cpu::avx512_unavailable_reason();
  return reason.empty() && !cpu::cpu_features().avx512vnni ? "this machine lacks AVX512_VNNI" : reason;
}

std::vector<Form> forms() {
  const std::string avx2 = cpu::avx2_unavailable_reason(), avx512 = cpu::avx512_unavailable_reason();
  return {{"generic fma", &cpu::kGenericParts, nullptr, {}},
          {"avx2 fma", &cpu::kAvx2Parts, nullptr, avx2},
          {"avx2 pairs", &cpu::kAvx2Parts, cpu::kAvx2Parts.digits, avx2},
          {"avx512 fma", &cpu::kAvx512Parts, nullptr, avx512},
          {"avx512 pairs", &cpu::kAvx512Parts, cpu::kAvx512Parts.digits, avx512},
          {"avx512 vnni", &cpu::kAvx512Parts, cpu::kAvx512Parts.digits_vnni, vnni_unavailable_reason()}};
}

class W4A8Form : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    form_ = forms()[static_cast<size_t>(GetParam())];
    if (!form_.unavailable.empty()) GTEST_SKIP() << form_.unavailable;
    parts_ = *form_.unit;
    if (form_.digits != nullptr) {
      digits_ = *form_.digits;
      digits_.most_rows = INT64_MAX;
    }
    parts_.digits = form_.digits != nullptr ? &digits_ : nullptr;
    parts_.digits_vnni = nullptr;
  }

  Buffer<float> run(const W4Problem& problem) {
    W4A8Gemm gemm = problem.problem(nullptr);
    Buffer<float> out = poisoned(problem.slots() * gemm.n);
    gemm.out = out.data();
    cpu::drive_w4a8_gemm(parts_, gemm, {&pool_, &arena_});
    arena_.reset();
    return out;
  }
  void expect_exact_bits(const W4Problem& problem) { EXPECT_TRUE(same_bits(problem.expected(), run(problem))); }

  // Whether the first tile of expert 0 is packed as digits, where the form has them.
  void expect_digits(const W4Problem& problem, bool expected) {
    if (form_.digits == nullptr) return;
    const W4A8Gemm gemm = problem.problem(nullptr);
    std::vector<float> packed(static_cast<size_t>(problem.slots() * ((gemm.k + 31) / 32 * 32)));
    EXPECT_EQ(digits_.pack(gemm, 0, 0, packed.data()), expected);
  }

  Form form_;
  cpu::IsaParts parts_{};
  cpu::DigitParts digits_{};
  ThreadPool pool_{2};
  Arena arena_;
};

TEST_P(W4A8Form, RandomShapes) {
  Random random(31);
  for (int i = 0; i < 60; ++i) {
    const int64_t group = std::array<int64_t, 4>{32, 64, 128, 0}[static_cast<size_t>(i % 4)];
    const int64_t k = group == 0 ? 8 * (1 + random.below(40)) : group * (1 + random.below(3));
    W4Case setup{Numerics::kExact, 8 * (1 + random.below(9)), k, group, {}, random.below(2) == 0, random.below(2) == 0};
    for (int64_t e = random.below(4); e >= 0; --e) setup.rows_of_expert.push_back(random.below(3) * random.below(12));
    setup.rows_of_expert.push_back(1 + random.below(9));
    W4Problem problem(setup, static_cast<uint32_t>(100 + i));
    // One case of three has rows that round or hold a NaN among the others.
    for (int64_t broken = i % 3 == 0 ? 3 : 0; broken > 0; --broken) {
      const auto at = static_cast<size_t>(random.below(static_cast<int64_t>(problem.act().size()) / k) * k);
      for (int64_t j = 0; j < std::min<int64_t>(k, 32); ++j) problem.act()[at + static_cast<size_t>(j)] = 0x7e;
      if (broken == 1) problem.act()[at + static_cast<size_t>(random.below(k))] = random.below(2) == 0 ? 0x7f : 0xff;
    }
    SCOPED_TRACE("case " + std::to_string(i));
    expect_exact_bits(problem);
  }
}

TEST_P(W4A8Form, EveryRowCount) {
  for (int64_t rows = 1; rows <= 24; ++rows) {
    SCOPED_TRACE(std::to_string(rows) + " rows");
    expect_exact_bits(W4Problem({Numerics::kExact, 40, 96, 32, {rows}}, 32));
  }
}

// Nine codes of 448, one of 64: sum |X| = 2^21 over one parity of a step, the most that stays exact; 60 is below it,
// and one more unit of 2^-9 above it.
TEST_P(W4A8Form, BothSidesOfTheBound) {
  constexpr uint8_t kOf448 = 0x7e, kOf64 = 0x68, kOf60 = 0x67, kUnit = 0x01, kSign = 0x80;
  ASSERT_EQ(numerics::e4m3_to_f32(kOf64), 64.0f);
  ASSERT_EQ(numerics::e4m3_to_f32(kOf60), 60.0f);
  for (const int parity : {0, 1}) {
    for (const int64_t step : {0, 2}) {
      for (const int kind : {-1, 0, 1}) {
        SCOPED_TRACE("parity " + std::to_string(parity) + " step " + std::to_string(step) + " kind " +
                     std::to_string(kind));
        W4Problem problem({Numerics::kExact, 48, 96, 32, {3}}, 33);
        uint8_t* act = problem.act().data() + 96 + step * 32 + parity;
        for (int i = 0; i < 16; ++i) {
          const uint8_t value =
              i < 9 ? kOf448 : (i == 9 ? (kind < 0 ? kOf60 : kOf64) : (i == 10 && kind > 0 ? kUnit : 0));
          act[2 * (15 - i)] = static_cast<uint8_t>(value | (i % 3 == 1 ? kSign : 0));
        }
        expect_digits(problem, kind <= 0);
        for (const int q : {-8, 7}) {
          problem.set_weights(q);
          expect_exact_bits(problem);
        }
      }
    }
  }
}

TEST_P(W4A8Form, NanCodesAreNotDigits) {
  for (const uint8_t nan : {0x7f, 0xff}) {
    for (const int64_t at : {0, 31, 95}) {
      W4Problem problem({Numerics::kExact, 16, 96, 32, {2}}, 34);
      expect_digits(problem, true);
      problem.act()[static_cast<size_t>(96 + at)] = nan;
      expect_digits(problem, false);
      expect_exact_bits(problem);
    }
  }
}

// Digits of -128 at every position: the largest sums of pairs in 16 bits.
TEST_P(W4A8Form, EveryCodeEverywhere) {
  for (const int q : {-8, -1, 0, 7}) {
    W4Problem problem({Numerics::kExact, 8, 32, 32, {254}}, 35);
    for (int code = 0; code < 254; ++code) {
      const auto number = static_cast<uint8_t>(code < 127 ? code : code + 1);
      std::fill_n(problem.act().begin() + code * 32, 32, number);
    }
    problem.set_weights(q);
    expect_exact_bits(problem);
  }
}

TEST_P(W4A8Form, SubnormalScalesAndZeroSums) {
  W4Problem problem({Numerics::kExact, 16, 64, 32, {4}}, 36);
  for (int64_t i = 0; i < 64; ++i) problem.act()[static_cast<size_t>(i)] = i % 2 == 0 ? 0x80 : 0x00;
  for (int64_t i = 0; i < 64; ++i) problem.act()[static_cast<size_t>(64 + i)] = 0x01;  // the smallest value
  for (int64_t row = 0; row < 16; ++row) {
    problem.set_scale(0, row, 0, static_cast<uint16_t>(row % 2 == 0 ? 0x0001 + row : 0x8001 + row), 0);
  }
  problem.act_scale()[1] = 0x1p100f;
  expect_exact_bits(problem);
  problem.set_weights(-8);
  expect_exact_bits(problem);
}

INSTANTIATE_TEST_SUITE_P(Forms, W4A8Form, ::testing::Range(0, 6), [](const ::testing::TestParamInfo<int>& param) {
  std::string name = forms()[static_cast<size_t>(param.param)].name;
  std::replace(name.begin(), name.end(), ' ', '_');
  return name;
});

}  // namespace
}  // namespace quadrille::kernels::test
