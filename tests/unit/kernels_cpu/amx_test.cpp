// SPDX-License-Identifier: Apache-2.0
// The tile product of the amx unit over emulated tiles, against the scalar statement of the CPU order and against
// `generic`, bit for bit; which form of the table `amx` runs; why it does not run here.
#include <gmock/gmock.h>

#include <array>

#include "emulated_amx.h"
#include "kernels/cpu/amx/tile_counts.h"
#include "kernels/cpu/cpuid.h"
#include "kernels/cpu/drive.h"
#include "w4_problem.h"

namespace quadrille::kernels::test {
namespace {

constexpr std::array kNumerics = {Numerics::kExact, Numerics::kVllm};

class EmulatedTiles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cpu::cpu_features().avx512vbmi || !cpu::avx512_unavailable_reason().empty()) {
      GTEST_SKIP() << "this machine lacks AVX-512 VBMI, with which the amx unit decodes weights";
    }
    before_ = seen();
  }
  void TearDown() override {
    if (IsSkipped()) return;
    const std::array<uint64_t, 3> after = seen();
    EXPECT_GT(after[0], before_[0]) << "no tile was used";
    EXPECT_EQ(after[1], before_[1]) << "tiles used without a configuration, or never released";
    EXPECT_EQ(after[2], before_[2]) << "subnormal operands or sums, which the hardware takes as zero";
  }
  static std::array<uint64_t, 3> seen() {
    const cpu::EmulatedAmx& amx = cpu::kEmulatedAmx;
    return {amx.num_dots(), amx.num_misuses(), amx.num_subnormals()};
  }

  Buffer<float> run(const W4A8Gemm& problem, ThreadPool& pool) {
    Buffer<float> out = poisoned(problem.rows.offsets[problem.rows.num_experts] * problem.n);
    W4A8Gemm gemm = problem;
    gemm.out = out.data();
    cpu::drive_w4a8_gemm(cpu::kEmulatedAmx.parts, gemm, {&pool, &arena_});
    return out;
  }
  void expect_exact_bits(const W4Problem& problem) {
    const Buffer<float> expected = problem.expected();
    for (ThreadPool* pool : {&one_, &three_}) {
      EXPECT_TRUE(same_bits(expected, run(problem.problem(nullptr), *pool)));
    }
  }

  ThreadPool one_{1};
  ThreadPool three_{3};
  Arena arena_;
  std::array<uint64_t, 3> before_{};
};

TEST_F(EmulatedTiles, EveryRowCountUpTo70EqualsGeneric) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t group : {32, 128}) {
      const W4Problem whole({numerics, 40, 288, group, {70}}, 1);
      const Buffer<float> expected = whole.run(cpu::kGenericTable, {&one_, &arena_});
      for (int64_t rows = 1; rows <= 70; ++rows) {
        W4A8Gemm gemm = whole.problem(nullptr);
        const std::array<int64_t, 2> offsets = {0, rows};
        gemm.rows.offsets = offsets.data();
        const Buffer<float> head(expected.begin(), expected.begin() + rows * gemm.n);
        ASSERT_TRUE(same_bits(head, run(gemm, one_))) << rows << " rows, group " << group;
      }
    }
  }
}

TEST_F(EmulatedTiles, GroupSizesAndPanels) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t group : {32, 64, 128, 0}) {
      for (const int64_t rows : {1, 5, 16, 17, 33, 50}) {
        SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
        expect_exact_bits(W4Problem({numerics, 104, 384, group, {rows}}, 2));
      }
    }
  }
}

TEST_F(EmulatedTiles, MoreTokensThanLieInTheFirstCache) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t rows : {128, 129, 144, 261}) {
      SCOPED_TRACE(rows);
      expect_exact_bits(W4Problem({numerics, 40, 160, 32, {rows}, true, true}, 3));
    }
  }
}

TEST_F(EmulatedTiles, RowsThatFillNoBlockAndColumnsThatFillNoStep) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t n : {8, 16, 24, 32, 40, 56, 72}) {
      expect_exact_bits(W4Problem({numerics, n, 64, 32, {9}, false, true}, 4));
    }
    for (const int64_t k : {8, 24, 32, 40, 120, 128, 136, 168, 264, 376}) {
      SCOPED_TRACE("k " + std::to_string(k));
      expect_exact_bits(W4Problem({numerics, 24, k, 0, {3, 35}}, 5));
    }
  }
}

TEST_F(EmulatedTiles, GroupedRowsWithEmptyExpertsGatherAndBias) {
  for (const Numerics numerics : kNumerics) {
    expect_exact_bits(W4Problem({numerics, 136, 256, 64, {0, 3, 0, 1, 17, 0, 2, 40, 0}, true, true}, 6));
    expect_exact_bits(W4Problem({numerics, 264, 512, 128, {1, 1, 0, 0, 1, 1}, true, false}, 7));
  }
}

TEST_F(EmulatedTiles, SumsThatRoundInsideAStep) {
  for (const Numerics numerics : kNumerics) {
    W4Problem problem({numerics, 64, 256, 128, {21}}, 8);
    Random random(9);
    for (uint8_t& code : problem.act()) {
      const int64_t kind = random.below(4);
      code = kind == 0 ? static_cast<uint8_t>(1 + random.below(7)) : (kind == 1 ? 0x7e : 0x7d);
    }
    expect_exact_bits(problem);
  }
}

// The smallest codes of both operands: their products and sums stay far above the subnormals (TearDown).
TEST_F(EmulatedTiles, SmallestCodes) {
  for (const Numerics numerics : kNumerics) {
    W4Problem problem({numerics, 32, 128, 32, {18}}, 10);
    Random random(11);
    for (uint8_t& code : problem.act()) code = static_cast<uint8_t>(random.below(4) | random.below(2) << 7);
    for (int64_t row = 0; row < 32; ++row) {
      for (int64_t group = 0; group < 4; ++group) {
        problem.set_scale(0, row, group, 0x0001, static_cast<uint8_t>(random.below(3) | random.below(2) << 7));
      }
    }
    expect_exact_bits(problem);
  }
}

TEST_F(EmulatedTiles, NanInfinityAndZeroRows) {
  for (const Numerics numerics : kNumerics) {
    W4Problem problem({numerics, 40, 128, 64, {20}, false, true}, 12);
    problem.set_special_values();
    expect_exact_bits(problem);
  }
}

TEST_F(EmulatedTiles, BlockScales) {
  for (const int64_t group : {32, 64, 128, 0}) {
    for (const int64_t rows : {1, 8, 25, 34}) {
      SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
      expect_exact_bits(W4Problem({Numerics::kExact, 40, 320, group, {rows}, false, false, true}, 13));
    }
  }
  expect_exact_bits(W4Problem({Numerics::kExact, 136, 256, 64, {0, 3, 0, 17, 90, 0}, true, true, true}, 14));
}

class AmxTable : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = cpu::kAmxTable.unavailable_reason();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

// Few rows run as in `avx512`, many on tiles; both count as calls of this table.
TEST_F(AmxTable, TilesRunFromTheirNumberOfRowsOn) {
  for (const Numerics numerics : kNumerics) {
    const cpu::TileCounts& counts = cpu::kAmxTileCounts;
    const int64_t from = numerics == Numerics::kExact ? counts.rows_exact : counts.rows_vllm;
    for (const int64_t rows : {from - 1, from, from + 40}) {
      const W4Problem problem({numerics, 64, 128, 32, {rows}}, 15);
      ThreadPool pool(2);
      Arena arena;
      const uint64_t tiles = counts.num_shares(), calls = cpu::kAmxTable.num_calls();
      EXPECT_TRUE(same_bits(problem.expected(), problem.run(cpu::kAmxTable, {&pool, &arena})));
      EXPECT_EQ(counts.num_shares() > tiles, rows >= from) << rows << " rows";
      EXPECT_GT(cpu::kAmxTable.num_calls(), calls);
    }
  }
}

// What the hardware does with operands whose sums round in every place: the emulation says the same.
TEST_F(AmxTable, HardwareTilesGiveTheBitsOfEmulatedTiles) {
  const W4Problem problem({Numerics::kExact, 512, 1024, 128, {130, 47}, true, true}, 16);
  ThreadPool pool(2);
  Arena arena;
  Buffer<float> emulated = poisoned(problem.slots() * 512);
  cpu::drive_w4a8_gemm(cpu::kEmulatedAmx.parts, problem.problem(emulated.data()), {&pool, &arena});
  EXPECT_TRUE(same_bits(emulated, problem.run(cpu::kAmxTable, {&pool, &arena})));
}

TEST(AmxReason, NamesWhatIsMissing) {
  cpu::CpuFeatures features;
  const std::string nothing = cpu::amx_reason_of(features);
  for (const char* name : {"AVX-512 F", "AVX-512 VBMI", "AMX-TILE", "AMX-BF16", "tile registers"}) {
    EXPECT_THAT(nothing, ::testing::HasSubstr(name));
  }
  features.avx512f = features.avx512bw = features.avx512vl = features.avx512dq = features.avx512vbmi = true;
  features.avx512vnni = true;
  features.fma = features.os_saves_zmm = features.os_saves_tiles = features.amx_tile = true;
  EXPECT_THAT(cpu::amx_reason_of(features), ::testing::HasSubstr("lacks AMX-BF16, which the amx kernels"));
  features.amx_bf16 = true;
  features.tile_permission_error = 95;
  EXPECT_THAT(cpu::amx_reason_of(features), ::testing::HasSubstr("refused"));
  features.tile_permission_error = 0;
  EXPECT_EQ(cpu::amx_reason_of(features), "");
}

TEST(AmxReason, IsTheSameEveryTime) {
  EXPECT_EQ(cpu::amx_unavailable_reason(), cpu::amx_unavailable_reason());
}

}  // namespace
}  // namespace quadrille::kernels::test
