// SPDX-License-Identifier: Apache-2.0
// Dense bf16 products: within their error bound of the exact ones, the same bits for a row in every batch and tile,
// experts by a tile list with gathered rows, activations equal to those of the product's own fp32 result.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <optional>
#include <random>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "numerics/activation.h"

namespace quadrille {
namespace {

using kernels::GemmOutput;
using numerics::bf16_from_f32;
using numerics::bf16_to_f32;
using testing::bit_differences;
using testing::must;
using testing::on_host;
using testing::PoolMemory;

std::vector<uint16_t> normal_numbers(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<uint16_t> x;
  for (int64_t i = 0; i < count; ++i) x.push_back(bf16_from_f32(normal(random)));
  return x;
}
std::vector<float> some_bias(int64_t count) {
  std::vector<float> bias;
  for (int64_t i = 0; i < count; ++i) bias.push_back(static_cast<float>(i % 37) * 0.25f - 4.0f);
  return bias;
}

// Of one output: 16 steps of a piece lose at most 17 units in the last place of the largest term each, the pieces one
// addition each; then the rounding of the result.
struct Exact {
  double y = 0, bound = 0;
};
Exact exact_of(const uint16_t* x, const uint16_t* w, int64_t k, float bias) {
  double size = 0;
  Exact e;
  for (int64_t i = 0; i < k; ++i) {
    const double term = double{bf16_to_f32(x[i])} * bf16_to_f32(w[i]);
    e.y += term;
    size += std::abs(term);
  }
  const double pieces = static_cast<double>((k + 255) / 256);
  e.y += bias;
  e.bound = (16 * 17 + 2 * pieces) * 0x1p-23 * (size + std::abs(bias)) + 0x1p-8 * std::abs(e.y);
  return e;
}

class Bf16GemmTest : public testing::TableTest {
 protected:
  // Rows of out (bf16) of `rows` rows of x.
  std::vector<uint16_t> plain(kernels::DeviceBf16Gemm p, int64_t rows) const {
    PoolMemory memory;
    p.list.num_rows = rows;
    p.out_pitch = p.n + 8;
    p.out = memory.take<uint16_t>(rows * p.out_pitch, 16, stream());
    must(device::fill(p.out, 0xff, static_cast<size_t>(rows * p.out_pitch) * 2, stream()));
    table_->bf16_gemm(p, stream());
    auto out = on_host<uint16_t>(p.out, rows * p.out_pitch, stream());
    EXPECT_EQ(memory.harmed(stream()), "");
    return out;
  }
};

TEST_F(Bf16GemmTest, IsNearTheProductAndDoesNotDependOnTheBatch) {
  constexpr int64_t kRows = 200;
  for (const auto& [n, k] :
       {std::pair<int64_t, int64_t>{8, 8}, {24, 40}, {128, 64}, {136, 256}, {264, 520}, {1000, 2048}}) {
    SCOPED_TRACE(fmt::format("n {} k {}", n, k));
    const int64_t x_pitch = k + 8;
    const auto x = normal_numbers(kRows * x_pitch, 1), w = normal_numbers(n * k, 2);
    const auto bias = some_bias(n);
    PoolMemory memory;
    kernels::DeviceBf16Gemm p;
    p.n = n;
    p.k = k;
    p.weights = memory.copy_of(w, stream());
    p.bias = memory.copy_of(bias, stream());
    p.x = memory.copy_of(x, stream());
    p.x_pitch = x_pitch;
    const auto whole = plain(p, kRows);
    for (const int64_t row : {0, 15, 16, 127, 128, 199}) {
      for (int64_t j = 0; j < n; ++j) {
        const Exact e = exact_of(&x[row * x_pitch], &w[j * k], k, bias[j]);
        ASSERT_NEAR(bf16_to_f32(whole[row * (n + 8) + j]), e.y, e.bound) << row << " " << j;
      }
      for (int64_t j = n; j < n + 8; ++j) ASSERT_EQ(whole[row * (n + 8) + j], 0xffff) << "behind the row";
    }
    for (const int64_t rows : {1, 16, 17, 64, 65, 128, 129}) {
      const std::vector<uint16_t> expected(whole.begin(), whole.begin() + rows * (n + 8));
      ASSERT_EQ(bit_differences(plain(p, rows), expected, n + 8), "") << rows << " rows";
    }
  }
  kernels::DeviceBf16Gemm empty;
  empty.n = empty.k = empty.x_pitch = empty.out_pitch = 64;
  table_->bf16_gemm(empty, stream());
}

// Three experts, one without rows; the rows of x are gathered as by a plan with top_k 2.
TEST_F(Bf16GemmTest, ExpertsByATileList) {
  constexpr int64_t kExperts = 3, kSlots = 150, kWidth = 72, kK = 328;
  const int64_t n = 2 * kWidth;
  const auto x = normal_numbers(kSlots / 2 * kK, 3), w = normal_numbers(kExperts * n * kK, 4);
  const auto bias = some_bias(kExperts * n);
  std::vector<int32_t> route(kSlots);
  for (int64_t s = 0; s < kSlots; ++s) route[s] = static_cast<int32_t>(s * 7 % kSlots);
  std::vector<std::vector<uint32_t>> of_tiles;
  for (const int64_t tile_tokens : {16, 64, 128}) {
    std::vector<kernels::TokenTile> tiles;
    const int32_t first_row[4] = {0, 90, 90, 150};
    for (int32_t e = 0; e < 3; ++e) {
      for (int32_t r = first_row[e]; r < first_row[e + 1]; r += static_cast<int32_t>(tile_tokens)) {
        tiles.push_back({e, r, std::min<int32_t>(static_cast<int32_t>(tile_tokens), first_row[e + 1] - r), 0, 0, {}});
      }
    }
    const auto num_tiles = static_cast<int32_t>(tiles.size());
    tiles.resize(tiles.size() + 3, {-1, -1, -1, -1, -1, {}});
    PoolMemory memory;
    kernels::DeviceBf16Gemm p;
    p.n = n;
    p.k = kK;
    p.num_experts = kExperts;
    p.list.tiles = memory.copy_of(tiles, stream());
    p.list.num_tiles = memory.copy_of(std::vector<int32_t>{num_tiles}, stream());
    p.list.max_tiles = static_cast<int64_t>(tiles.size());
    p.tile_tokens = tile_tokens;
    p.weights = memory.copy_of(w, stream());
    p.expert_stride = n * kK;
    p.bias = memory.copy_of(bias, stream());
    p.x = memory.copy_of(x, stream());
    p.x_pitch = kK;
    p.source_row = memory.copy_of(route, stream());
    p.source_divisor = 2;
    p.output = GemmOutput::kRowsF32;
    p.out = memory.take<float>(kSlots * n, 16, stream());
    p.out_pitch = n;
    table_->bf16_gemm(p, stream());
    of_tiles.push_back(on_host<uint32_t>(p.out, kSlots * n, stream()));
    ASSERT_EQ(bit_differences(of_tiles.back(), of_tiles.front(), n), "") << tile_tokens;
    const auto& y = of_tiles.back();
    for (const int64_t s : {0, 89, 90, 149}) {
      const int64_t e = s < 90 ? 0 : 2;
      for (int64_t j = 0; j < n; ++j) {
        const Exact exact = exact_of(&x[route[s] / 2 * kK], &w[(e * n + j) * kK], kK, bias[e * n + j]);
        ASSERT_NEAR(numerics::float_of(y[s * n + j]), exact.y, exact.bound) << s << " " << j;
      }
    }
    for (const auto arithmetic : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
      p.output = GemmOutput::kActivated;
      p.numerics = arithmetic;
      p.out = memory.take<uint16_t>(kSlots * kWidth, 16, stream());
      p.out_pitch = kWidth;
      table_->bf16_gemm(p, stream());
      std::vector<uint16_t> expected;
      for (int64_t i = 0; i < kSlots * kWidth; ++i) {
        const float gate = numerics::float_of(y[i / kWidth * n + i % kWidth]);
        const float up = numerics::float_of(y[i / kWidth * n + kWidth + i % kWidth]);
        expected.push_back(bf16_from_f32(arithmetic == kernels::Numerics::kExact
                                             ? numerics::activation_exact(p.activation, gate, up)
                                             : numerics::activation_vllm(p.activation, gate, up)));
      }
      ASSERT_EQ(bit_differences(on_host<uint16_t>(p.out, kSlots * kWidth, stream()), expected, kWidth), "");
    }
    ASSERT_EQ(memory.harmed(stream()), "");
  }
}

// The head of Qwen3-30B-A3B at decode, and its attention projection as bf16 at prefill.
TEST_F(Bf16GemmTest, Speed) {
  for (const auto& [n, k, rows] :
       {std::array<int64_t, 3>{151936, 2048, 1}, {151936, 2048, 64}, {5120, 2048, 1}, {5120, 2048, 4096}}) {
    PoolMemory memory;
    kernels::DeviceBf16Gemm p;
    p.n = n;
    p.k = k;
    const auto take = [&](int64_t count) {
      auto* values = memory.take<uint16_t>(count, 128, stream());
      must(device::fill(values, 0x3c, static_cast<size_t>(count) * 2, stream()));
      return values;
    };
    p.weights = take(n * k);
    p.x = take(rows * k);
    p.x_pitch = k;
    p.list.num_rows = rows;
    p.out = take(rows * n);
    p.out_pitch = n;
    const auto begin = must(device::OwnedEvent::create(true)), end = must(device::OwnedEvent::create(true));
    float best = 1e9f;
    for (int i = 0; i < 10; ++i) {
      must(device::record(begin.get(), stream()));
      table_->bf16_gemm(p, stream());
      must(device::record(end.get(), stream()));
      must(device::synchronize(end.get()));
      best = std::min(best, must(device::elapsed_ms(begin.get(), end.get())));
    }
    std::printf("bf16 product n %ld k %ld rows %ld: %.1f us, %.2f TB/s of weights, %.0f TFLOP/s\n",
                static_cast<long>(n), static_cast<long>(k), static_cast<long>(rows), best * 1e3,
                static_cast<double>(n * k) * 2 / best * 1e-9, static_cast<double>(2 * n * k * rows) / best * 1e-9);
  }
}

}  // namespace
}  // namespace quadrille
