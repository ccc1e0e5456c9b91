// SPDX-License-Identifier: Apache-2.0
// 1 x 128 activation scales on every table: what follows from their definition whatever the table (the definition
// itself to the bit: hopper_model_test.cpp and w4a8_bounds_test.cpp).
#include <gtest/gtest.h>

#include "kernels/ref/tables.h"
#include "numerics/bits.h"
#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::Numerics;
using numerics::bits_of;
using testing::W4A8Sample;

void expect_same_bits(const std::vector<float>& found, const std::vector<float>& expected, const char* table) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(bits_of(found[i]), bits_of(expected[i])) << table << " at " << i;
}

// A power of two commutes with every rounding: equal block scales in a row give the bits of one scale a row.
TEST(W4A8Block, EqualPowersOfTwoAreOneScaleARow) {
  unsigned seed = 500;
  for (const auto& shape : testing::w4a8_shapes()) {
    W4A8Sample sample(shape, Numerics::kExact, seed++);
    const int64_t blocks = sample.num_blocks();
    for (size_t r = 0; r < sample.act_scale.size(); ++r) {
      sample.act_scale[r] = std::ldexp(1.0f, static_cast<int>(r % 9) - 6);
      std::fill_n(sample.block_scale.begin() + static_cast<int64_t>(r) * blocks, blocks, sample.act_scale[r]);
    }
    for (const kernels::KernelTable* table : testing::runnable_tables()) {
      sample.block = false;
      const auto expected = sample.run(*table);
      sample.block = true;
      expect_same_bits(sample.run(*table), expected, table->name);
    }
  }
}

// Each scale reaches the 128 columns that it stands for and no other: where the other columns are zero, doubling it
// doubles the result, and theirs do not matter.
TEST(W4A8Block, AScaleReachesItsColumns) {
  for (const int64_t group : {32, 64, 128, 0}) {
    for (const kernels::KernelTable* table : testing::runnable_tables()) {
      for (size_t block = 0; block < 3; ++block) {
        W4A8Sample sample({16, 384, group, {3}}, Numerics::kExact, 520);
        sample.block = true;
        for (size_t i = 0; i < sample.act.size(); ++i) {
          if (i % 384 / 128 != block) sample.act[i] = 0;
        }
        std::fill(sample.block_scale.begin(), sample.block_scale.end(), 1.0f);
        auto expected = sample.run(*table);
        for (float& y : expected) y *= 2.0f;
        for (size_t i = 0; i < sample.block_scale.size(); ++i) sample.block_scale[i] = i % 3 == block ? 2.0f : 1024.0f;
        expect_same_bits(sample.run(*table), expected, table->name);
        EXPECT_NE(expected[0], 0.0f);
      }
    }
  }
}

// The scales may lie as [rows, blocks] or, as the masked layout has them, as [experts, blocks, rows of an expert].
TEST(W4A8Block, StridesChangeNoBit) {
  W4A8Sample sample({24, 320, 64, {3, 0, 4}}, Numerics::kExact, 530);
  const int64_t max_m = 5, blocks = sample.num_blocks();
  sample.offsets = {0, 3, 3, 7};
  sample.source_row.clear();
  for (int64_t slot = 0; slot < 7; ++slot) {
    sample.source_row.push_back(static_cast<int32_t>(slot < 3 ? slot : 2 * max_m + slot - 3));
  }
  std::mt19937 random(531);
  sample.act.resize(static_cast<size_t>(3 * max_m * 320));
  for (uint8_t& code : sample.act) code = static_cast<uint8_t>(random() % 0x7f | (random() % 2) << 7);
  sample.block_scale.assign(static_cast<size_t>(3 * max_m * blocks), 0.0f);
  std::vector<float> masked(sample.block_scale.size());
  for (int64_t row = 0; row < 3 * max_m; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      const float scale = std::ldexp(1.0f + static_cast<float>(random() % 1000) / 1000.0f, -5);
      sample.block_scale[static_cast<size_t>(row * blocks + b)] = scale;
      masked[static_cast<size_t>((row / max_m * blocks + b) * max_m + row % max_m)] = scale;
    }
  }
  sample.block = true;
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    const auto expected = sample.run(*table);
    std::vector<float> out(expected.size());
    kernels::W4A8Gemm gemm = sample.problem(out.data());
    gemm.act_scale = nullptr;
    gemm.block_scale = kernels::masked_block_scales(masked.data(), blocks, max_m);
    table->w4a8_gemm(gemm, {&sample.pool, &sample.scratch});
    expect_same_bits(out, expected, table->name);
  }
}

// sa_b * acc is rounded in the unit of q * 2^-9: where it is subnormal, a table that counts in q must not keep more.
TEST(W4A8Block, SubnormalProductsAreRoundedOnce) {
  W4A8Sample sample({16, 128, 128, {1}}, Numerics::kExact, 540);
  sample.block = true;
  std::fill(sample.act.begin(), sample.act.end(), uint8_t{0});
  const auto row = static_cast<size_t>(sample.source_row[0]);
  sample.act[row * 128] = 0x38;           // 1: the sum is q * 2^-9
  sample.block_scale[row] = 0x1.8p-142f;  // the product 0.375 q units of 2^-149
  sample.scales[0].assign(16, 0x4ec0);    // 1.5 * 2^30, so that the result is no subnormal itself
  for (int64_t i = 0; i < sample.prepared[0].scale_bf16.size(); ++i) sample.prepared[0].scale_bf16[i] = 0x4ec0;
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    if (table == &kernels::ref::kRefTable) continue;  // double does not round here
    const auto out = sample.run(*table);
    for (int64_t n = 0; n < 16; ++n) {
      const double units = std::nearbyint(0.375 * sample.code(0, n, 0));
      ASSERT_EQ(out[static_cast<size_t>(n)], static_cast<float>(1.5 * 0x1p30 * units * 0x1p-149 * 512.0))
          << table->name << " q " << sample.code(0, n, 0);
    }
  }
}

// NaN and infinite scales reach their row; a row's bits do not depend on the others.
TEST(W4A8Block, NanInfinityAndRowsAlone) {
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    W4A8Sample sample({24, 256, 64, {9, 4}}, Numerics::kExact, 550);
    sample.block = true;
    sample.block_scale[static_cast<size_t>(sample.source_row[2] * 2 + 1)] = std::nanf("");
    const auto together = sample.run(*table);
    for (int64_t slot = 0; slot < sample.slots(); ++slot) {
      const bool hit = sample.source_row[static_cast<size_t>(slot)] == sample.source_row[2];
      for (size_t n = 0; n < 24; ++n) {
        const float y = together[static_cast<size_t>(slot) * 24 + n];
        ASSERT_EQ(bits_of(y) == numerics::kCanonicalNanF32, hit) << table->name << " slot " << slot;
      }
    }
    const auto rows = sample.source_row;
    sample.offsets = {0, 1, 1};
    for (size_t slot = 0; slot < 9; ++slot) {
      sample.source_row = {rows[slot]};
      const auto alone = sample.run(*table);
      expect_same_bits(
          alone,
          {together.begin() + static_cast<int64_t>(slot) * 24, together.begin() + static_cast<int64_t>(slot + 1) * 24},
          table->name);
    }
  }
}

}  // namespace
}  // namespace quadrille
