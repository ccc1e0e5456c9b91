// SPDX-License-Identifier: Apache-2.0
// Padding adds nothing: the product of a shard is that of the unsharded matrix with zero codes where the rank holds
// none, bit for bit on every table, and the shards' products add up to the unsharded product.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "kernels/api/registry.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/int4.h"
#include "prepare/shard.h"
#include "random_w4.h"
#include "unit/layout/published_shapes.h"

namespace quadrille::prepare {
namespace {

using kernels::KernelTable;
using kernels::Numerics;
using layout::KFormat;
using layout::KShard;
using layout::Range;

constexpr uint16_t kMinusZero = 0x8000;  // fmaf(-0, +0, final) is final, whatever final is

// Input rows [num_rows, k] in e4m3 with a scale each.
struct Input {
  int64_t num_rows = 0, k = 0;
  std::vector<uint8_t> act;
  std::vector<float> act_scale;

  static Input random(int64_t num_rows, int64_t k, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0.0f, 60.0f);
    Input in{num_rows, k, {}, {}};
    for (int64_t i = 0; i < num_rows * k; ++i) in.act.push_back(numerics::e4m3_from_f32(normal(engine)));
    for (int64_t i = 0; i < num_rows; ++i) in.act_scale.push_back(0.001f * static_cast<float>(i + 1));
    return in;
  }
  // What the rank reads: its columns, and zeros or, to show that they do not count, other numbers around them.
  Input shard(const KShard& s, bool zeros_around) const {
    Input in{num_rows, s.k(), {}, act_scale};
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t column = s.pad_begin; column < s.pad_end; ++column) {
        const uint8_t code = act[static_cast<size_t>(row * k + column)];
        in.act.push_back(s.holds(column) || !zeros_around ? code : uint8_t{0});
      }
    }
    return in;
  }
};

std::vector<float> product(const KernelTable& table, const CanonicalW4& weights, const Input& in, Numerics numerics) {
  auto prepared = prepare_w4(weights, numerics);
  if (!prepared) throw std::runtime_error(prepared.error().message);
  const kernels::W4Matrix matrix = prepared->view();
  const int64_t offsets[2] = {0, in.num_rows};
  std::vector<float> out(static_cast<size_t>(in.num_rows * weights.n), std::bit_cast<float>(0xdeadbeefu));
  kernels::W4A8Gemm gemm;
  gemm.numerics = numerics;
  gemm.n = weights.n;
  gemm.k = weights.k;
  gemm.group_size = weights.group_size;
  gemm.rows.offsets = offsets;
  gemm.weights = &matrix;
  gemm.act = in.act.data();
  gemm.act_scale = in.act_scale.data();
  gemm.out = out.data();
  ThreadPool pool(1);
  Arena arena;
  table.w4a8_gemm(gemm, {&pool, &arena});
  return out;
}

// The unsharded matrix with zero codes outside of the held columns. Its scales stay, or are -0 in groups of which the
// rank holds nothing.
test::RandomW4 masked(const test::RandomW4& whole, const KShard& shard, bool keep_scales) {
  test::RandomW4 out = whole;
  for (int64_t i = 0; i < whole.n * whole.k; ++i) {
    if (shard.holds(i % whole.k)) continue;
    uint32_t& word = out.packed[static_cast<size_t>(i / 8)];
    word = (word & ~(0xfu << (4 * (i % 8)))) | (0x8u << (4 * (i % 8)));
  }
  for (size_t i = 0; i < out.scales.size() && !keep_scales; ++i) {
    const auto group = static_cast<int64_t>(i) % whole.groups;
    if (group < shard.group_begin() || group >= shard.group_end()) out.scales[i] = kMinusZero;
  }
  return out;
}

template <typename Body>
void each_table(Body&& body) {
  for (const KernelTable* table : kernels::all_tables()) {
    if (!table->unavailable_reason().empty()) continue;
    SCOPED_TRACE(table->name);
    body(*table);
  }
}

std::vector<uint32_t> bits(const std::vector<float>& values) {
  std::vector<uint32_t> out;
  for (const float v : values) out.push_back(std::bit_cast<uint32_t>(v));
  return out;
}

void expect_same_as_masked(const KernelTable& table, const test::RandomW4& whole, const std::vector<Range>& cut,
                           Numerics numerics) {
  const Input in = Input::random(3, whole.k, 5);
  const auto absmax = row_absmax(whole.view());
  ASSERT_TRUE(absmax);
  for (const Range& held : cut) {
    SCOPED_TRACE("columns " + std::to_string(held.begin) + " to " + std::to_string(held.end));
    const KShard shard = layout::k_shard({whole.k, true, whole.group_size}, held);
    const auto part = row_parallel_shard(whole.view(), shard, ChannelScale::kWholeRow);
    ASSERT_TRUE(part);
    const auto found = bits(product(table, part->view(), in.shard(shard, true), numerics));
    EXPECT_EQ(found, bits(product(table, part->view(), in.shard(shard, false), numerics))) << "what surrounds counts";
    for (const bool keep_scales : {true, false}) {
      const test::RandomW4 mask = masked(whole, shard, keep_scales);
      CanonicalW4 view = mask.view();
      view.row_absmax = absmax->data();
      EXPECT_EQ(found, bits(product(table, view, in, numerics))) << "scales kept: " << keep_scales;
    }
  }
}

TEST(ShardGemm, EqualsTheMaskedProductBitForBit) {
  const std::vector<std::vector<Range>> cuts = {
      {{0, 72}, {72, 104}, {104, 320}, {320, 384}},  // inside groups, inside k32 steps
      {{0, 3}, {3, 37}, {37, 38}, {38, 384}}};       // inside words: odd and even positions stay theirs
  each_table([&](const KernelTable& table) {
    for (const int64_t group : {0, 32, 64, 128}) {
      for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
        SCOPED_TRACE("group " + std::to_string(group) + (numerics == Numerics::kExact ? " exact" : " vllm"));
        const test::RandomW4 whole(24, 384, group, static_cast<unsigned>(41 + group));
        for (const auto& cut : cuts) expect_same_as_masked(table, whole, cut, numerics);
      }
    }
  });
}

TEST(ShardGemm, EveryPublishedWidth) {
  const auto table = kernels::select_table("");
  ASSERT_TRUE(table);
  for (const auto& shape : quadrille::test::kPublishedShapes) {
    for (const int64_t group : quadrille::test::group_sizes(shape)) {
      const test::RandomW4 whole(8, shape.expert_width, group, 43);
      for (int ranks = 2; ranks <= 8; ++ranks) {
        SCOPED_TRACE(std::string(shape.name) + " group " + std::to_string(group) + " ranks " + std::to_string(ranks));
        const auto cut = layout::cut_width(shape.expert_width, KFormat{1, true, group}.k_align(), ranks, "the width");
        ASSERT_TRUE(cut);
        expect_same_as_masked(**table, whole, *cut, Numerics::kExact);
        if (HasFailure()) return;
      }
    }
  }
}

// Small whole numbers times powers of two: every partial product and every sum is exact, so the sum over the ranks must
// be the unsharded product, to the bit.
TEST(ShardGemm, PartialProductsAddUpExactly) {
  const auto table = kernels::select_table("ref");
  ASSERT_TRUE(table);
  std::mt19937 random(47);
  for (const auto& shape : quadrille::test::kPublishedShapes) {
    if (shape.expert_width > 4096) continue;  // sums would leave the 24 bits of the output
    for (const int64_t group : quadrille::test::group_sizes(shape)) {
      test::RandomW4 whole(8, shape.expert_width, group, 53);
      for (uint16_t& scale : whole.scales)
        scale = numerics::bf16_from_f32(448.0f / static_cast<float>(1 << random() % 3));
      Input in{2, whole.k, {}, {1.0f, 0.5f}};
      for (int64_t i = 0; i < 2 * whole.k; ++i) {
        in.act.push_back(numerics::e4m3_from_f32(static_cast<float>(static_cast<int>(random() % 3) - 1)));
      }
      for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
        const std::vector<float> expected = product(**table, whole.view(), in, numerics);
        for (int ranks = 1; ranks <= 8; ++ranks) {
          SCOPED_TRACE(std::string(shape.name) + " group " + std::to_string(group) + " ranks " + std::to_string(ranks));
          const auto cut = layout::cut_in_units(whole.k, 8, ranks, "the width");
          ASSERT_TRUE(cut);
          std::vector<double> sum(expected.size(), 0.0);
          for (const Range& held : *cut) {
            const KShard shard = layout::k_shard({whole.k, true, group}, held);
            const auto part = row_parallel_shard(whole.view(), shard, ChannelScale::kWholeRow);
            ASSERT_TRUE(part);
            const auto partial = product(**table, part->view(), in.shard(shard, true), numerics);
            for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(partial[i]);
          }
          for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], static_cast<double>(expected[i]));
        }
      }
    }
  }
}

// The unsharded product of the test above against plain sums over the codes, so that equal partial sums are no accident
// of a table that returns the same everywhere.
TEST(ShardGemm, TheUnshardedProductIsTheSumOverTheCodes) {
  const auto table = kernels::select_table("ref");
  ASSERT_TRUE(table);
  test::RandomW4 whole(8, 704, 32, 59);
  for (size_t i = 0; i < whole.scales.size(); ++i) whole.scales[i] = numerics::bf16_from_f32(i % 3 == 0 ? 2.0f : -0.5f);
  Input in{1, 704, {}, {1.0f}};
  for (int64_t i = 0; i < 704; ++i) in.act.push_back(numerics::e4m3_from_f32(static_cast<float>(i % 5 - 2)));
  const std::vector<float> found = product(**table, whole.view(), in, Numerics::kExact);
  for (int64_t row = 0; row < 8; ++row) {
    double sum = 0;
    for (int64_t k = 0; k < 704; ++k) {
      const float scale = numerics::bf16_to_f32(whole.scales[static_cast<size_t>(row * whole.groups + k / 32)]);
      sum += static_cast<double>(whole.q[static_cast<size_t>(row * 704 + k)]) * scale * static_cast<double>(k % 5 - 2);
    }
    EXPECT_EQ(found[static_cast<size_t>(row)], sum);
  }
}

}  // namespace
}  // namespace quadrille::prepare
