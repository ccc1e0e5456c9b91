// SPDX-License-Identifier: Apache-2.0
// The masked form of the experts: `hopper` against the scalar statement to the bit, the CPU tables among themselves,
// counts of 0 and max_m, rows behind the counts neither read nor written, and its errors.
#include "moe/masked_layer.h"

#include <gtest/gtest.h>

#include "w4_experts.h"

namespace quadrille::moe {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using quadrille::numerics::bits_of;

constexpr uint32_t kPoison = 0xdeadbeefu;

struct MaskedShape {
  int64_t experts, hidden, width, group, max_m;
  std::vector<int32_t> masked_m;
};

const MaskedShape kShapes[] = {
    {4, 192, 64, 64, 5, {0, 5, 3, 1}},     // blocks of 128 and 64
    {3, 256, 128, 128, 4, {4, 4, 4}},      // everything full
    {3, 160, 96, 32, 2, {0, 0, 2}},        // first experts empty
    {2, 136, 72, 0, 3, {3, 2}},            // one scale a channel, a last block of 8
    {5, 128, 32, 32, 1, {1, 0, 0, 1, 0}},  // one row each
    {2, 128, 32, 32, 7, {0, 0}},           // nobody
    {1, 384, 64, 64, 33, {33}},            // one expert, more rows than a tile
    {3, 128, 64, 64, 0, {0, 0, 0}},        // no room
};

struct Sample {
  MaskedShape shape;
  ExpertPair experts;
  int64_t blocks;
  std::vector<uint8_t> act;  // NaN codes and scales behind the counts
  std::vector<float> scale;

  Sample(const MaskedShape& wanted, const kernels::ActivationRule& rule, bool bias)
      : shape(wanted),
        experts(wanted.experts, wanted.hidden, wanted.width, wanted.group, rule, Numerics::kExact, bias, 7),
        blocks((wanted.hidden + 127) / 128),
        act(static_cast<size_t>(wanted.experts * wanted.max_m * wanted.hidden), 0x7f),
        scale(static_cast<size_t>(wanted.experts * blocks * wanted.max_m), std::nanf("")) {
    std::mt19937 random(9);
    std::normal_distribution<float> normal(0.0f, 60.0f);
    for (int64_t e = 0; e < shape.experts; ++e) {
      for (int64_t i = 0; i < shape.masked_m[static_cast<size_t>(e)]; ++i) {
        for (int64_t k = 0; k < shape.hidden; ++k) {
          act[static_cast<size_t>((e * shape.max_m + i) * shape.hidden + k)] = numerics::e4m3_from_f32(normal(random));
        }
        for (int64_t b = 0; b < blocks; ++b) {
          scale[static_cast<size_t>((e * blocks + b) * shape.max_m + i)] = 0.005f + std::fabs(normal(random)) * 4e-4f;
        }
      }
    }
  }

  CodedRow row(int64_t e, int64_t i) const {
    CodedRow x;
    const auto first = act.begin() + (e * shape.max_m + i) * shape.hidden;
    x.codes.assign(first, first + shape.hidden);
    for (int64_t b = 0; b < blocks; ++b) {
      x.block_scale.push_back(scale[static_cast<size_t>((e * blocks + b) * shape.max_m + i)]);
    }
    return x;
  }
  MaskedBatch batch() const { return {shape.max_m, act.data(), scale.data(), shape.masked_m.data()}; }

  std::vector<float> run(const char* table, Rounding rounding) const {
    ThreadPool pool(2);
    Arena scratch;
    const Execution execution{*kernels::select_table(table), {&pool, &scratch}, Numerics::kExact, rounding};
    std::vector<float> out(static_cast<size_t>(shape.experts * shape.max_m * shape.hidden),
                           numerics::float_of(kPoison));
    const Status status = run_masked_experts(experts.view(), batch(), execution, out.data());
    if (!status) throw std::runtime_error(status.error().message);
    return out;
  }
};

void expect_statement(const Sample& s, const std::vector<float>& out) {
  for (int64_t e = 0; e < s.shape.experts; ++e) {
    for (int64_t i = 0; i < s.shape.max_m; ++i) {
      const float* found = out.data() + (e * s.shape.max_m + i) * s.shape.hidden;
      const bool here = i < s.shape.masked_m[static_cast<size_t>(e)];
      const std::vector<float> expected =
          here ? s.experts.hopper_row(e, s.row(e, i))
               : std::vector<float>(static_cast<size_t>(s.shape.hidden), numerics::float_of(kPoison));
      for (int64_t k = 0; k < s.shape.hidden; ++k) {
        ASSERT_EQ(bits_of(found[k]), bits_of(expected[static_cast<size_t>(k)]))
            << "expert " << e << " row " << i << " column " << k << (here ? "" : ": behind masked_m");
      }
    }
  }
}

TEST(MaskedLayer, HopperEqualsTheStatement) {
  for (const MaskedShape& shape : kShapes) {
    for (const auto& rule : every_activation()) {
      for (const bool bias : {false, true}) {
        const Sample sample(shape, rule, bias);
        SCOPED_TRACE(fmt::format("hidden {} group {} kind {}{}", shape.hidden, shape.group, static_cast<int>(rule.kind),
                                 bias ? " bias" : ""));
        expect_statement(sample, sample.run("hopper", Rounding::kBf16));
      }
    }
  }
}

TEST(MaskedLayer, CpuTablesAgreeToTheBitAndWriteNothingElse) {
  int compared = 0;
  for (const MaskedShape& shape : kShapes) {
    const Sample sample(shape, {}, true);
    for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
      const auto generic = sample.run("generic", rounding);
      for (size_t at = 0; at < generic.size(); ++at) {
        const auto row = static_cast<int64_t>(at) / shape.hidden;
        const bool here = row % shape.max_m < shape.masked_m[static_cast<size_t>(row / shape.max_m)];
        ASSERT_EQ(bits_of(generic[at]) == kPoison, !here) << at;
        ASSERT_TRUE(!here || std::isfinite(generic[at])) << "a NaN from behind masked_m was read";
      }
      for (const char* table : {"avx2", "avx512", "amx"}) {
        if (!kernels::select_table(table)) continue;
        ++compared;
        EXPECT_EQ(sample.run(table, rounding), generic) << table;
      }
    }
  }
  if (compared == 0) GTEST_SKIP() << "this machine runs no table beside generic";
}

// Block scales that are equal powers of two are one scale a row: the rows of the ordinary feed-forward.
TEST(MaskedLayer, EqualScalesGiveTheRowsOfTheOrdinaryForm) {
  for (const char* table : {"ref", "hopper", "generic", "avx2", "avx512", "amx"}) {
    if (!kernels::select_table(table)) continue;
    Sample sample({1, 256, 64, 64, 6, {6}}, {}, true);
    // A row whose largest code is 448: quantising its values gives the codes back with the scale 2^-6.
    for (int64_t i = 0; i < 6; ++i) sample.act[static_cast<size_t>(i * 256 + 17 * i)] = 0x7e;
    std::fill(sample.scale.begin(), sample.scale.end(), 0x1p-6f);
    std::vector<float> x;
    for (const uint8_t code : sample.act) x.push_back(numerics::e4m3_to_f32(code) * 0x1p-6f);
    ThreadPool pool(2);
    Arena scratch;
    const Execution execution{*kernels::select_table(table), {&pool, &scratch}, Numerics::kExact, Rounding::kBf16};
    LinearInput input(x.data(), 6, 256);
    std::vector<float> expected(x.size());
    ASSERT_TRUE(run_mlp(sample.experts.view(), &input, execution, expected.data()));
    EXPECT_EQ(sample.run(table, Rounding::kBf16), expected) << table;
  }
}

Error error_of(const GatedMlp& mlp, const MaskedBatch& batch, Numerics numerics = Numerics::kExact) {
  ThreadPool pool(1);
  Arena scratch;
  const Execution execution{*kernels::select_table("hopper"), {&pool, &scratch}, numerics, Rounding::kBf16};
  std::vector<float> out(4096, numerics::float_of(kPoison));
  const Status status = run_masked_experts(mlp, batch, execution, out.data());
  for (const float y : out) EXPECT_EQ(bits_of(y), kPoison) << "an error comes before any work";
  EXPECT_FALSE(status);
  return status ? Error{} : status.error();
}

TEST(MaskedLayer, Errors) {
  Sample sample({2, 128, 32, 32, 3, {1, 2}}, {}, false);
  const GatedMlp mlp = sample.experts.view();
  for (const int32_t bad : {-1, 4}) {
    sample.shape.masked_m = {3, bad};
    const Error error = error_of(mlp, sample.batch());
    EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
    EXPECT_NE(error.message.find(fmt::format("expert 1: masked_m is {}; legal are 0 to 3", bad)), std::string::npos)
        << error.message;
  }
  sample.shape.masked_m = {1, 2};
  EXPECT_EQ(error_of(mlp, sample.batch(), Numerics::kVllm).code, ErrorCode::kUnsupported);
  GatedMlp dense = mlp;
  dense.down = Bf16Linear{2, 128, 32, nullptr, nullptr};
  EXPECT_EQ(error_of(dense, sample.batch()).code, ErrorCode::kUnsupported);
  GatedMlp narrow = mlp;
  narrow.width = 64;
  EXPECT_EQ(error_of(narrow, sample.batch()).code, ErrorCode::kInvalidArgument);
  MaskedBatch large = sample.batch();
  large.max_m = int64_t{1} << 31;
  EXPECT_EQ(error_of(mlp, large).code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace quadrille::moe
