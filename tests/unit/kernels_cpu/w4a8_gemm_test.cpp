// SPDX-License-Identifier: Apache-2.0
// The W4A8 product of every CPU table against the scalar statement of the CPU order, bit for bit.
#include <array>

#include "w4_problem.h"

namespace quadrille::kernels::test {
namespace {

class W4A8 : public CpuTable {
 protected:
  void expect_exact_bits(const W4Problem& problem) {
    const Buffer<float> expected = problem.expected();
    contexts_.each(
        [&](const KernelContext& context) { EXPECT_TRUE(same_bits(expected, problem.run(table(), context))); });
  }
  // The same on one thread.
  void expect_exact_bits_here(const W4Problem& problem) {
    ThreadPool pool(1);
    Arena arena;
    EXPECT_TRUE(same_bits(problem.expected(), problem.run(table(), {&pool, &arena})));
  }
  Contexts contexts_;
};

constexpr std::array kNumerics = {Numerics::kExact, Numerics::kVllm};

TEST_P(W4A8, GroupSizesAndRowCounts) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t group : {32, 64, 128, 0}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 24, 25}) {
        SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
        expect_exact_bits_here(W4Problem({numerics, 48, 256, group, {rows}}, 1));
      }
    }
  }
}

TEST_P(W4A8, EveryRowCountUpTo130) {
  for (const Numerics numerics : kNumerics) {
    expect_every_row_count(W4Problem({numerics, 40, 96, 32, {130}}, 2), table());
    if (HasFatalFailure()) return;
  }
}

TEST_P(W4A8, RowsThatFillNoBlock) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t n : {8, 16, 24, 32, 40, 56, 72}) {
      for (const int64_t rows : {1, 2, 3, 4, 9}) {
        SCOPED_TRACE("n " + std::to_string(n) + " rows " + std::to_string(rows));
        expect_exact_bits_here(W4Problem({numerics, n, 64, 32, {rows}, false, true}, 3));
      }
    }
  }
}

TEST_P(W4A8, ChannelScalesWithAnyMultipleOfEight) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t k : {8, 24, 32, 40, 120, 128, 136, 168, 264, 376}) {
      for (const int64_t rows : {1, 3, 14}) {
        SCOPED_TRACE("k " + std::to_string(k) + " rows " + std::to_string(rows));
        expect_exact_bits_here(W4Problem({numerics, 24, k, 0, {rows}}, 4));
      }
    }
  }
}

TEST_P(W4A8, GroupedRowsWithEmptyExpertsGatherAndBiasOnAnyNumberOfThreads) {
  for (const Numerics numerics : kNumerics) {
    expect_exact_bits(W4Problem({numerics, 136, 256, 64, {0, 3, 0, 1, 17, 0, 2, 40, 0}, true, true}, 5));
    expect_exact_bits(W4Problem({numerics, 264, 512, 128, {1, 1, 0, 0, 1, 1}, true, false}, 6));
    expect_exact_bits(W4Problem({numerics, 96, 128, 32, {130, 1}, false, true}, 7));
    expect_exact_bits(W4Problem({numerics, 96, 128, 32, {0, 0, 0}}, 8));
  }
}

TEST_P(W4A8, ManyTokenBlocks) {
  expect_exact_bits(W4Problem({Numerics::kExact, 40, 160, 32, {257, 0, 121}}, 9));
  expect_exact_bits(W4Problem({Numerics::kVllm, 40, 160, 0, {257}}, 10));
}

// 24 bits do not hold the sums of a step at the largest codes: the order of the chains shows in the last bits.
TEST_P(W4A8, SumsThatRoundInsideAStep) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t rows : {1, 2, 4, 15}) {
      W4Problem problem({numerics, 64, 256, 128, {rows}}, 11);
      Random random(12);
      for (uint8_t& code : problem.act()) {
        const int64_t kind = random.below(4);
        code = kind == 0 ? static_cast<uint8_t>(1 + random.below(7)) : (kind == 1 ? 0x7e : 0x7d);
      }
      expect_exact_bits_here(problem);
    }
  }
}

TEST_P(W4A8, NanInfinityAndZeroRows) {
  for (const Numerics numerics : kNumerics) {
    for (const int64_t rows : {6, 20}) {
      W4Problem problem({numerics, 40, 128, 64, {rows}, false, true}, 13);
      problem.set_special_values();
      expect_exact_bits(problem);
    }
  }
}

TEST_P(W4A8, BlockScales) {
  for (const int64_t group : {32, 64, 128, 0}) {
    for (const int64_t rows : {1, 2, 5, 6, 7, 8, 13, 25}) {
      SCOPED_TRACE("group " + std::to_string(group) + " rows " + std::to_string(rows));
      expect_exact_bits_here(W4Problem({Numerics::kExact, 40, 320, group, {rows}, false, false, true}, 17));
    }
  }
  for (const int64_t k : {8, 120, 136, 264}) {
    expect_exact_bits_here(W4Problem({Numerics::kExact, 24, k, 0, {3}, false, false, true}, 18));
  }
  expect_exact_bits(W4Problem({Numerics::kExact, 136, 256, 64, {0, 3, 0, 1, 17, 0, 2, 90, 0}, true, true, true}, 19));
}

TEST_P(W4A8, BlockScalesOfNanAndInfinity) {
  W4Problem problem({Numerics::kExact, 40, 256, 64, {6}, false, true, true}, 20);
  problem.block_scale()[0] = std::numeric_limits<float>::infinity();
  problem.block_scale()[3] = std::numeric_limits<float>::quiet_NaN();
  problem.block_scale()[4] = 0.0f;
  problem.block_scale()[7] = 1e-42f;
  problem.act()[5 * 256 + 100] = 0x7f;
  expect_exact_bits(problem);
}

// A row's bits do not depend on what else is in the batch.
TEST_P(W4A8, RowsAloneEqualRowsTogether) {
  const W4Problem together({Numerics::kExact, 80, 256, 128, {37}}, 14);
  ThreadPool pool(2);
  Arena arena;
  const Buffer<float> all = together.run(table(), {&pool, &arena});
  for (int64_t row = 0; row < 37; ++row) {
    W4A8Gemm gemm = together.problem(nullptr);
    const std::array<int64_t, 2> offsets = {0, 1};
    const std::array<int32_t, 1> source = {static_cast<int32_t>(row)};
    Buffer<float> alone = poisoned(gemm.n);
    gemm.rows = {1, offsets.data(), source.data()};
    gemm.out = alone.data();
    table().w4a8_gemm(gemm, {&pool, &arena});
    const Buffer<float> part(all.begin() + row * gemm.n, all.begin() + (row + 1) * gemm.n);
    ASSERT_TRUE(same_bits(part, alone)) << "row " << row;
  }
}

TEST_P(W4A8, ScratchIsGivenBackAndNotGrown) {
  const W4Problem problem({Numerics::kExact, 64, 128, 32, {5, 1}}, 15);
  ThreadPool pool(2);
  Arena arena;
  const KernelContext context{&pool, &arena};
  problem.run(table(), context);
  arena.reset();
  const size_t capacity = arena.capacity_bytes();
  for (int i = 0; i < 3; ++i) problem.run(table(), context);
  arena.reset();
  EXPECT_EQ(arena.capacity_bytes(), capacity);
}

TEST_P(W4A8, TheUnitOfTheTableRan) {
  const W4Problem problem({Numerics::kExact, 64, 128, 32, {5}}, 16);
  std::array<uint64_t, 4> before{};
  const std::array tables = {&cpu::kGenericTable, &cpu::kAvx2Table, &cpu::kAvx512Table, &cpu::kAmxTable};
  for (size_t i = 0; i < tables.size(); ++i) before[i] = tables[i]->num_calls();
  ThreadPool pool(1);
  Arena arena;
  problem.run(table(), {&pool, &arena});
  for (size_t i = 0; i < tables.size(); ++i) {
    const bool forced = tables[i] == GetParam();
    EXPECT_EQ(tables[i]->num_calls() > before[i], forced) << tables[i]->name;
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, W4A8, every_cpu_table(), table_name);

}  // namespace
}  // namespace quadrille::kernels::test
