// SPDX-License-Identifier: Apache-2.0
// The dense bf16 product of every CPU table against its scalar statement: one fma chain over k, bit for bit.
#include <array>
#include <cmath>

#include "cpu_tables.h"
#include "layout/bf16_lanes16.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::test {
namespace {

struct Bf16Case {
  Rounding rounding = Rounding::kBf16;
  int64_t n = 0, k = 0;
  std::vector<int64_t> rows_of_expert;
  bool gather = false;
  bool bias = false;
};

class Bf16Problem {
 public:
  Bf16Problem(const Bf16Case& setup, uint32_t seed) : setup_(setup), random_(seed) {
    offsets_.push_back(0);
    for (int64_t rows : setup.rows_of_expert) offsets_.push_back(offsets_.back() + rows);
    const int64_t inputs = slots() + 2;
    for (int64_t s = 0; setup.gather && s < slots(); ++s) {
      source_.push_back(static_cast<int32_t>(random_.below(inputs)));
    }
    x_ = random_.normals(inputs * setup.k);
    if (setup.rounding == Rounding::kBf16) {
      for (float& x : x_) x = numerics::round_to_bf16(x);
    }
    const layout::Bf16Lanes16 map{setup.n, setup.k};
    for (size_t e = 0; e < setup.rows_of_expert.size(); ++e) {
      weights_.emplace_back(static_cast<size_t>(map.size()));
      for (int64_t row = 0; row < setup.n; ++row) {
        for (int64_t k = 0; k < setup.k; ++k) weights_[e][static_cast<size_t>(map.offset(row, k))] = random_.bf16();
      }
      bias_.push_back(random_.normals(setup.n));
    }
    for (size_t e = 0; e < weights_.size(); ++e) {
      weight_pointers_.push_back(weights_[e].data());
      bias_pointers_.push_back(bias_[e].data());
    }
  }

  int64_t slots() const { return offsets_.back(); }
  Buffer<float>& x() { return x_; }

  Buffer<float> run(const KernelTable& table, const KernelContext& context) const {
    Buffer<float> out = poisoned(slots() * setup_.n);
    Bf16Gemm gemm;
    gemm.rounding = setup_.rounding;
    gemm.n = setup_.n;
    gemm.k = setup_.k;
    gemm.rows = {static_cast<int64_t>(weights_.size()), offsets_.data(), setup_.gather ? source_.data() : nullptr};
    gemm.weights = weight_pointers_.data();
    gemm.x = x_.data();
    gemm.bias = setup_.bias ? bias_pointers_.data() : nullptr;
    gemm.out = out.data();
    table.bf16_gemm(gemm, context);
    return out;
  }

  Buffer<float> expected() const {
    Buffer<float> out(static_cast<size_t>(slots() * setup_.n));
    const layout::Bf16Lanes16 map{setup_.n, setup_.k};
    for (size_t e = 0; e < weights_.size(); ++e) {
      for (int64_t s = offsets_[e]; s < offsets_[e + 1]; ++s) {
        const float* x = x_.data() + (setup_.gather ? source_[static_cast<size_t>(s)] : s) * setup_.k;
        for (int64_t row = 0; row < setup_.n; ++row) {
          float y = 0.0f;
          for (int64_t k = 0; k < setup_.k; ++k) {
            y = std::fma(x[k], numerics::bf16_to_f32(weights_[e][static_cast<size_t>(map.offset(row, k))]), y);
          }
          if (setup_.bias) y = y + bias_[e][static_cast<size_t>(row)];
          y = numerics::round_output(y, setup_.rounding == Rounding::kBf16);
          out[static_cast<size_t>(s * setup_.n + row)] = y;
        }
      }
    }
    return out;
  }

 private:
  Bf16Case setup_;
  Random random_;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> source_;
  Buffer<float> x_;
  std::vector<Buffer<uint16_t>> weights_;
  std::vector<Buffer<float>> bias_;
  std::vector<const uint16_t*> weight_pointers_;
  std::vector<const float*> bias_pointers_;
};

class Bf16 : public CpuTable {
 protected:
  void expect_exact_bits(const Bf16Problem& problem) {
    const Buffer<float> expected = problem.expected();
    contexts_.each(
        [&](const KernelContext& context) { EXPECT_TRUE(same_bits(expected, problem.run(table(), context))); });
  }
  Contexts contexts_;
};

TEST_P(Bf16, AnyShapeAndRowCount) {
  for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
    for (const int64_t n : {1, 7, 16, 24, 50, 80, 144}) {
      for (const int64_t k : {1, 37, 128, 300}) {
        for (const int64_t rows : {1, 2, 3, 4, 5, 6, 13}) {
          SCOPED_TRACE("n " + std::to_string(n) + " k " + std::to_string(k) + " rows " + std::to_string(rows));
          const Bf16Problem problem({rounding, n, k, {rows}, false, n % 2 == 0}, 1);
          ThreadPool pool(1);
          Arena arena;
          EXPECT_TRUE(same_bits(problem.expected(), problem.run(table(), {&pool, &arena})));
        }
      }
    }
  }
}

TEST_P(Bf16, GroupedRowsOnAnyNumberOfThreads) {
  for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
    expect_exact_bits(Bf16Problem({rounding, 200, 384, {0, 3, 1, 0, 29, 130}, true, true}, 2));
    expect_exact_bits(Bf16Problem({rounding, 1000, 512, {1}, false, false}, 3));
    expect_exact_bits(Bf16Problem({rounding, 64, 64, {0}, false, false}, 4));
  }
}

TEST_P(Bf16, NanAndInfinity) {
  for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
    Bf16Problem problem({rounding, 40, 64, {3, 9}, false, true}, 5);
    problem.x()[5] = std::numeric_limits<float>::quiet_NaN();
    problem.x()[64 + 9] = std::numeric_limits<float>::infinity();
    problem.x()[5 * 64 + 1] = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < 64; ++i) problem.x()[static_cast<size_t>(6 * 64 + i)] = -0.0f;
    expect_exact_bits(problem);
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, Bf16, every_cpu_table(), table_name);

}  // namespace
}  // namespace quadrille::kernels::test
