// SPDX-License-Identifier: Apache-2.0
// The dense bf16 product: `ref` against the others within the bound of a chain of k fma; every other table to the bit
// of one fp32 fma chain in k order.
#include <gtest/gtest.h>

#include <cmath>
#include <list>
#include <random>
#include <string>

#include "kernels/ref/tables.h"
#include "numerics/elementwise.h"
#include "prepare/prepare_bf16.h"
#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::Rounding;
using numerics::bits_of;

struct DenseSample {
  int64_t n, k;
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> source_row;
  std::vector<float> x;
  std::vector<std::vector<uint16_t>> weights;
  std::vector<prepare::PreparedBf16> prepared;
  std::vector<const uint16_t*> views;
  std::vector<std::vector<float>> biases;
  std::vector<const float*> bias;
  ThreadPool pool{2};
  Arena scratch;

  DenseSample(int64_t rows_n, int64_t rows_k, const std::vector<int64_t>& counts, unsigned seed)
      : n(rows_n), k(rows_k) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t count : counts) offsets.push_back(offsets.back() + count);
    const int64_t inputs = offsets.back() + 2;
    for (int64_t s = 0; s < offsets.back(); ++s) source_row.push_back(static_cast<int32_t>(random() % inputs));
    for (int64_t i = 0; i < inputs * k; ++i) x.push_back(normal(random));
    for (size_t e = 0; e < counts.size(); ++e) {
      std::vector<uint16_t> codes;
      for (int64_t i = 0; i < n * k; ++i) codes.push_back(numerics::bf16_from_f32(normal(random)));
      auto one = prepare::prepare_bf16({n, k, prepare::DenseType::kBf16, codes.data()});
      weights.push_back(codes);
      prepared.push_back(std::move(*one));
      std::vector<float> expert_bias;
      for (int64_t i = 0; i < n; ++i) expert_bias.push_back(normal(random));
      biases.push_back(expert_bias);
    }
    for (const auto& one : prepared) views.push_back(one.view());
    for (size_t e = 0; e < biases.size(); ++e) bias.push_back(e % 2 == 0 ? biases[e].data() : nullptr);
  }

  std::vector<float> run(const kernels::KernelTable& table, Rounding rounding) {
    std::vector<float> out(static_cast<size_t>(offsets.back() * n));
    kernels::Bf16Gemm gemm;
    gemm.rounding = rounding;
    gemm.n = n;
    gemm.k = k;
    gemm.rows = {static_cast<int64_t>(views.size()), offsets.data(), source_row.data()};
    gemm.weights = views.data();
    gemm.x = x.data();
    gemm.bias = bias.data();
    gemm.out = out.data();
    table.bf16_gemm(gemm, {&pool, &scratch});
    return out;
  }

  // visit(index of the output, expert, x row, weight row)
  template <typename Visit>
  void for_outputs(Visit&& visit) const {
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      for (int64_t slot = offsets[e]; slot < offsets[e + 1]; ++slot) {
        for (int64_t row = 0; row < n; ++row) {
          visit(static_cast<size_t>(slot * n + row), e, x.data() + source_row[static_cast<size_t>(slot)] * k,
                weights[e].data() + row * k, row);
        }
      }
    }
  }
};

std::list<DenseSample> samples() {
  std::list<DenseSample> out;
  out.emplace_back(16, 8, std::vector<int64_t>{1}, 1);
  out.emplace_back(33, 77, std::vector<int64_t>{5, 0, 9}, 2);
  out.emplace_back(1, 300, std::vector<int64_t>{7}, 3);
  out.emplace_back(48, 512, std::vector<int64_t>{2, 3}, 4);
  return out;
}

TEST(Dense, EveryTableButRefIsOneChain) {
  auto all = samples();
  for (auto& s : all) {
    for (const Rounding rounding : {Rounding::kF32, Rounding::kBf16}) {
      std::vector<float> expected(static_cast<size_t>(s.offsets.back() * s.n));
      s.for_outputs([&](size_t i, size_t e, const float* x, const uint16_t* w, int64_t row) {
        float acc = 0.0f;
        for (int64_t k = 0; k < s.k; ++k) acc = std::fmaf(x[k], numerics::bf16_to_f32(w[k]), acc);
        if (s.bias[e] != nullptr) acc = acc + s.bias[e][row];
        expected[i] = numerics::round_output(acc, rounding == Rounding::kBf16);
      });
      for (const kernels::KernelTable* table : testing::runnable_tables()) {
        if (std::string(table->name) == "ref") continue;
        const auto out = s.run(*table, rounding);
        for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(bits_of(out[i]), bits_of(expected[i])) << table->name;
      }
    }
  }
}

TEST(Dense, ChainStaysWithinItsBoundOfRef) {
  auto all = samples();
  for (auto& s : all) {
    const auto truth = s.run(kernels::ref::kRefTable, Rounding::kF32);
    const auto out = s.run(kernels::ref::kHopperTable, Rounding::kF32);
    s.for_outputs([&](size_t i, size_t e, const float* x, const uint16_t* w, int64_t row) {
      double magnitude = s.bias[e] == nullptr ? 0.0 : std::fabs(s.bias[e][row]);
      for (int64_t k = 0; k < s.k; ++k) magnitude += std::fabs(double{x[k]} * numerics::bf16_to_f32(w[k]));
      // k roundings of the chain, one of the bias; two of `ref`.
      const double roundings = static_cast<double>(s.k) + 3;
      ASSERT_LE(std::fabs(double{out[i]} - double{truth[i]}),
                roundings * 0x1p-24 / (1 - roundings * 0x1p-24) * magnitude);
    });
  }
}

TEST(Dense, NanAndInfinity) {
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    DenseSample s(17, 64, {4}, 9);
    s.x[static_cast<size_t>(s.source_row[1] * 64 + 5)] = std::nanf("");
    for (const Rounding rounding : {Rounding::kF32, Rounding::kBf16}) {
      const auto out = s.run(*table, rounding);
      for (size_t slot = 0; slot < 4; ++slot) {
        for (size_t n = 0; n < 17; ++n) {
          const bool hit = s.source_row[slot] == s.source_row[1];
          const uint32_t canonical = rounding == Rounding::kF32 ? 0x7fffffffu : 0x7fff0000u;
          ASSERT_EQ(bits_of(out[slot * 17 + n]) == canonical, hit) << table->name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace quadrille
