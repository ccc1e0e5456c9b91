// SPDX-License-Identifier: Apache-2.0
// The scalar rules of the W4A8 product, and the vllm scale split against vectors computed elsewhere.
#include "numerics/w4a8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "numerics/group_scale.h"
#include "numerics/hopper_k32.h"

namespace quadrille::numerics {
namespace {

TEST(W4A8, StepIsTwoChainsThenASum) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  float a[32], w[32];
  for (int i = 0; i < 32; ++i) a[i] = normal(random), w[i] = normal(random);
  float even = 0.0f, odd = 0.0f;
  for (int i = 0; i < 32; i += 2) even = std::fmaf(a[i], w[i], even);
  for (int i = 1; i < 32; i += 2) odd = std::fmaf(a[i], w[i], odd);
  const volatile float both = even + odd;
  EXPECT_EQ(cpu_k32(a, w, 1.25f), 1.25f + both);
}

TEST(W4A8, CountingInQIsTheSameNumber) {
  // Every positive bf16 scale, subnormals included: s * 2^-9 is exact, so the order of the factor does not matter.
  for (uint32_t code = 0; code < 0x7f80; ++code) {
    const float scale = bf16_to_f32(static_cast<uint16_t>(code));
    const float scaled = exact_group_scale(static_cast<uint16_t>(code));
    ASSERT_EQ(double{scaled}, double{scale} * 0x1p-9) << code;
  }
  for (int q = -8; q <= 7; ++q) {
    EXPECT_EQ(e4m3_to_f32(exact_weight_code(q)), static_cast<float>(q) * kExactUnit);
  }
}

TEST(W4A8, ResultsMultiplyInTheirOrder) {
  const float sa = 1.7e-3f, total = 1234.567f, chan = 3.3e-4f;
  const volatile float scale = sa * 512.0f, inner = sa * total;
  EXPECT_EQ(exact_result(total, sa), total * scale);
  EXPECT_EQ(vllm_result(chan, sa, total), chan * inner);
  EXPECT_EQ(bits_of(exact_result(std::nanf(""), sa)), kCanonicalNanF32);
  EXPECT_EQ(piece_size(0), 128);
  EXPECT_EQ(piece_size(64), 64);
}

TEST(W4A8, BlockChain) {
  const float scale = 0.0137f, sa = 1.7e-3f, acc = 321.0625f, total = -4.5f;
  const volatile float scaled = sa * acc;  // rounded before the fma
  EXPECT_EQ(block_group(scale, sa, acc, total), std::fmaf(scale, scaled, total));
  // What is left after cancellation shows that rounding: with sa * acc unrounded it would be another number.
  const float opposite = -(scale * scaled);
  EXPECT_NE(block_group(scale, sa, acc, opposite),
            static_cast<float>(double{scale} * (double{sa} * double{acc}) + double{opposite}));
  EXPECT_EQ(block_result(3.25f), 1664.0f);
  EXPECT_EQ(bits_of(block_result(float_of(0xffc12345u))), kCanonicalNanF32);
}

// What a device's padding relies on: a step of zeros gives back its accumulator, a group of zeros with the scale -0 its
// final, a zero of either sign included.
TEST(W4A8, PaddingAddsNothing) {
  std::mt19937 random(2);
  const uint8_t zeros[32] = {};
  for (int round = 0; round < 2000; ++round) {
    uint8_t a[64], b[64], some[32];
    for (int i = 0; i < 64; ++i) {
      a[i] = static_cast<uint8_t>(random());
      b[i] = exact_weight_code(static_cast<int>(random() % 16) - 8);
      if (round % 8 != 0 && e4m3_is_nan(a[i])) a[i] = 0;
    }
    for (uint8_t& code : some) code = static_cast<uint8_t>(random() % 0x7f);
    const float acc = hopper_chain(a, b, 2, 0.0f);
    EXPECT_EQ(bits_of(hopper_k32(zeros, zeros, acc)), bits_of(acc));
    EXPECT_EQ(bits_of(hopper_k32(some, zeros, acc)), bits_of(acc));
  }
  EXPECT_EQ(bits_of(hopper_k32(zeros, zeros, 0.0f)), 0u);
  for (const float total : {0.0f, -0.0f, 1.5f, -3e-42f, INFINITY, -INFINITY}) {
    EXPECT_EQ(bits_of(exact_group(-0.0f, 0.0f, total)), bits_of(total));
    EXPECT_EQ(bits_of(block_group(-0.0f, 0.25f, 0.0f, total)), bits_of(total));
  }
  EXPECT_NE(bits_of(exact_group(0.0f, 0.0f, -0.0f)), bits_of(-0.0f)) << "the scale +0 would not do";
}

struct Split {
  std::vector<float> scales;
  float channel;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> codes8;
  float channel8;
};

TEST(GroupScale, KnownSplits) {
  const Split splits[] = {
      {{0.010009765625f, 0.00421142578125f, 0.0009002685546875f, 1.2516975402832031e-06f},
       2.2343227e-05f,
       {0x7E, 0x74, 0x62, 0x16},
       {0x66, 0x5C, 0x4A, 0x04},
       1.7874582e-04f},
      {{0.00119781494140625f, 0.000499725341796875f, 0.0010986328125f, 0.00010013580322265625f},
       4.3596542e-06f,
       {0x79, 0x6E, 0x78, 0x5B},
       {0x61, 0x56, 0x60, 0x43},
       3.4877234e-05f},
  };
  for (const Split& split : splits) {
    float absmax = 0.0f;
    for (float s : split.scales) absmax = absmax_step(absmax, s);
    const float channel = channel_scale_of_absmax(absmax);
    EXPECT_EQ(channel, split.channel);
    EXPECT_EQ(channel_scale8(channel), split.channel8);
    for (size_t g = 0; g < split.scales.size(); ++g) {
      const uint8_t code = group_scale_code(split.scales[g], channel);
      EXPECT_EQ(code, split.codes[g]) << g;
      EXPECT_EQ(group_scale8_code(code), split.codes8[g]) << g;
    }
  }
}

TEST(GroupScale, KnownTables) {
  const std::pair<uint8_t, std::vector<uint8_t>> tables[] = {
      {0x66, {0xFE, 0xFC, 0xFA, 0xF9, 0xF6, 0xF2, 0xEE, 0xE6}},
  };
  for (const auto& [scale, codes] : tables) {
    for (int i = 0; i < 8; ++i) EXPECT_EQ(lut_code(scale, i), codes[static_cast<size_t>(i)]) << i;
  }
  const float multiples24[] = {-192, -160, -144, -120, -96, -72, -48, -24};
  const float multiples5[] = {-40, -36, -30, -24, -20, -15, -10, -5};
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(e4m3_to_f32(lut_code(e4m3_from_f32(24), i)), multiples24[i]);
    EXPECT_EQ(e4m3_to_f32(lut_code(e4m3_from_f32(5), i)), multiples5[i]);
  }
}

TEST(GroupScale, WeightByteIsTheTableWithItsSign) {
  for (int scale = 0; scale < 256; ++scale) {
    const auto s8 = static_cast<uint8_t>(scale);
    if (e4m3_is_nan(s8)) {
      EXPECT_EQ(vllm_weight_code(s8, 0), kCanonicalNanE4m3);
      continue;
    }
    EXPECT_EQ(vllm_weight_code(s8, 0), 0);
    for (int q = 1; q <= 8; ++q) {
      const uint8_t entry = lut_code(s8, 8 - q);
      EXPECT_EQ(vllm_weight_code(s8, -q), entry);
      if (q < 8) {
        EXPECT_EQ(vllm_weight_code(s8, q), entry ^ 0x80);
      }
    }
  }
}

}  // namespace
}  // namespace quadrille::numerics
