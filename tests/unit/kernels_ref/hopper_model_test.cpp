// SPDX-License-Identifier: Apache-2.0
// The table `hopper` against the scalar tensor-core model of numerics/hopper_k32.h and the scale chains of the
// contract, bit for bit, from canonical numbers: all group sizes, tails, NaN, both numerics.
#include <gtest/gtest.h>

#include <array>

#include "kernels/ref/hopper_step.h"
#include "kernels/ref/tables.h"
#include "numerics/hopper_k32.h"
#include "numerics/w4a8.h"
#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::Numerics;
using numerics::bits_of;
using testing::W4A8Sample;

// One output by the contract, no layout, no vectors.
float contract_output(const W4A8Sample& s, int64_t slot, int64_t n) {
  const int64_t expert = s.expert_of(slot);
  const int64_t steps = (s.shape.k + 31) / 32;
  const uint8_t* a = s.act_row(slot);
  const bool exact = s.numerics == Numerics::kExact;
  float acc = 0.0f, total = 0.0f;
  for (int64_t step = 0; step < steps; ++step) {
    uint8_t left[32] = {}, right[32] = {};
    for (int64_t i = 0; i < 32 && step * 32 + i < s.shape.k; ++i) {
      const int64_t k = step * 32 + i;
      left[i] = a[k];
      right[i] = exact ? numerics::exact_weight_code(s.code(expert, n, k)) : s.vllm_byte(expert, n, k);
    }
    acc = numerics::hopper_k32(left, right, acc);
    const bool ends = step + 1 == steps || (step + 1) * 32 % numerics::piece_size(s.shape.group_size) == 0;
    if (!exact || !ends) continue;
    if (s.block) acc = s.block_scale_at(slot, step * 32) * acc;
    total = std::fmaf(s.scale(expert, n, s.group_of(step * 32)), acc, total);
    acc = 0.0f;
  }
  if (s.block) return numerics::canonical(total * 512.0f);
  if (exact) return numerics::canonical(total * (s.row_scale(slot) * 512.0f));
  return numerics::canonical(8.0f * s.channel_scale(expert, n) * (s.row_scale(slot) * acc));
}

void expect_contract(W4A8Sample& s) {
  const auto out = s.run(kernels::ref::kHopperTable);
  for (int64_t slot = 0; slot < s.slots(); ++slot) {
    for (int64_t n = 0; n < s.shape.n; ++n) {
      ASSERT_EQ(bits_of(out[static_cast<size_t>(slot * s.shape.n + n)]), bits_of(contract_output(s, slot, n)))
          << "slot " << slot << " n " << n << " k " << s.shape.k << " group " << s.shape.group_size;
    }
  }
}

TEST(HopperModel, TableFollowsTheContract) {
  unsigned seed = 1;
  for (const auto& shape : testing::w4a8_shapes()) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      W4A8Sample sample(shape, numerics, seed++);
      expect_contract(sample);
      sample.block = numerics == Numerics::kExact;
      expect_contract(sample);
    }
  }
}

TEST(HopperModel, NanReachesItsRowsOnly) {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    W4A8Sample sample({24, 256, 64, {5, 3}}, numerics, 77);
    sample.act[static_cast<size_t>(sample.source_row[2] * 256 + 100)] = 0x7f;
    expect_contract(sample);
    const auto out = sample.run(kernels::ref::kHopperTable);
    for (int64_t slot = 0; slot < sample.slots(); ++slot) {
      const bool hit = sample.source_row[static_cast<size_t>(slot)] == sample.source_row[2];
      for (int64_t n = 0; n < 24; ++n) {
        const float y = out[static_cast<size_t>(slot * 24 + n)];
        ASSERT_EQ(bits_of(y) == numerics::kCanonicalNanF32, hit) << slot;
      }
    }
  }
}

TEST(HopperModel, InfiniteRowScaleAndBias) {
  W4A8Sample sample({16, 64, 32, {4}}, Numerics::kExact, 78);
  std::fill(sample.act_scale.begin(), sample.act_scale.end(), INFINITY);
  expect_contract(sample);
  W4A8Sample other({16, 64, 32, {4, 2}}, Numerics::kVllm, 79);
  std::vector<float> bias(16, 0.125f);
  const float* biases[] = {nullptr, bias.data()};
  const auto plain = other.run(kernels::ref::kHopperTable);
  const auto biased = other.run(kernels::ref::kHopperTable, biases);
  for (size_t i = 0; i < plain.size(); ++i) ASSERT_EQ(biased[i], i < 4 * 16 ? plain[i] : plain[i] + 0.125f);
}

// The 16-lane step against the scalar one over random bytes of every family, chained as in a product.
TEST(HopperModel, FastStepEqualsScalarStep) {
  using kernels::ref::kModelLanes;
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    std::array<std::array<uint8_t, 32>, kModelLanes> b;
    std::array<uint8_t, 32> a;
    kernels::ref::StepWeights weights;
    kernels::ref::StepRow row;
    float fast[kModelLanes] = {}, scalar[kModelLanes] = {};
    const unsigned family = random() % 4;
    const auto draw = [&] {
      const auto byte = static_cast<uint8_t>(random());
      if (family == 0) return byte;                                                       // NaN bytes included
      if (family == 1) return static_cast<uint8_t>(byte & 0x87);                          // subnormals and zeros
      if (family == 2) return static_cast<uint8_t>(random() % 4 == 0 ? byte & 0xbf : 0);  // sparse, no NaN
      return static_cast<uint8_t>((byte & 0x80) | (byte & 0x7f) % 0x7f);
    };
    for (int step = 0; step < 4; ++step) {
      row.nan = 0;
      for (size_t i = 0; i < 32; ++i) {
        a[i] = draw();
        const auto operand = kernels::ref::model_operand(a[i]);
        row.value[i] = operand.value;
        row.exponent[i] = operand.exponent;
        row.nan |= operand.nan;
      }
      for (size_t l = 0; l < kModelLanes; ++l) {
        weights.nan[l] = 0;
        for (size_t i = 0; i < 32; ++i) {
          b[l][i] = draw();
          const auto operand = kernels::ref::model_operand(b[l][i]);
          weights.value[i][l] = operand.value;
          weights.exponent[i][l] = operand.exponent;
          weights.nan[l] |= operand.nan;
        }
      }
      kernels::ref::model_step(row, weights, fast);
      for (size_t l = 0; l < kModelLanes; ++l) {
        scalar[l] = numerics::hopper_k32(a.data(), b[l].data(), scalar[l]);
        ASSERT_EQ(bits_of(fast[l]), bits_of(scalar[l])) << "family " << family << " step " << step;
      }
    }
  }
}

}  // namespace
}  // namespace quadrille
