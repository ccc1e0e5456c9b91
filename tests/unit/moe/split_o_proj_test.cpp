// SPDX-License-Identifier: Apache-2.0
// o_proj over tensor-parallel ranks, which are threads here: its input, some heads' outputs a rank, gets the scale of
// the whole row, so codes and scales are those of one rank to the bit; with scales of their own they are not.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "kernels/api/registry.h"
#include "moe/row_parallel.h"
#include "parallel/communicator.h"
#include "parallel/thread_group.h"
#include "unit/moe/cut_experts.h"

namespace quadrille::moe {
namespace {

// 384 columns: two ranks cut through a group of 128, three on its borders.
constexpr int64_t kTokens = 7, kHeads = 6, kHeadDim = 64, kK = kHeads * kHeadDim;

struct Seen final : LayerObserver {
  void stage(const Stage& stage) override {
    const auto count = static_cast<size_t>(stage.shape[0] * stage.shape[1]);
    if (std::strcmp(stage.name, "a") == 0) {
      codes.assign(static_cast<const uint8_t*>(stage.data), static_cast<const uint8_t*>(stage.data) + count);
    } else if (std::strcmp(stage.name, "a_scale") == 0) {
      scales.assign(static_cast<const float*>(stage.data), static_cast<const float*>(stage.data) + count);
    }
  }
  std::vector<uint8_t> codes;
  std::vector<float> scales, out;
};

class SplitProjection {
 public:
  SplitProjection(const char* table, int64_t group) : table_(table), group_(group), random_(11) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kTokens * kK; ++i) {
      // Heads of different sizes, so that each rank's own absmax is another; and a row of zeros.
      const auto size = static_cast<float>(1 + i / kHeadDim % kHeads);
      x_.push_back(i / kK == 3 ? 0.0f : numerics::round_to_bf16(size * normal(random_)));
    }
    matrix_.emplace(random_, kHidden, kK, group, true);
  }

  KShard shard(int rank, int ranks) const {
    const int64_t share = kK / ranks;
    return layout::k_shard({kK, true, group_}, {rank * share, (rank + 1) * share});
  }

  std::vector<Seen> run(int ranks, SplitScale scale) {
    std::vector<Seen> seen(static_cast<size_t>(ranks));
    Status done;
    if (ranks == 1) {
      done = run_rank(nullptr, shard(0, 1), scale, &seen[0]);
    } else {
      done = parallel::run_rank_threads(ranks, [&](parallel::Communicator& communicator) {
        const int rank = communicator.rank();
        return run_rank(&communicator, shard(rank, ranks), scale, &seen[static_cast<size_t>(rank)]);
      });
    }
    QD_CHECK(done.ok(), done.ok() ? "" : done.error().message);
    return seen;
  }

 private:
  Status run_rank(parallel::Communicator* ranks, const KShard& cut, SplitScale scale, Seen* seen) const {
    ThreadPool pool(1);
    Arena scratch;
    Execution execution{*kernels::select_table(table_), {&pool, &scratch}, Numerics::kExact, kernels::Rounding::kBf16};
    execution.ranks = ranks;
    execution.split_scale = scale;
    std::vector<float> held;
    for (int64_t t = 0; t < kTokens; ++t) {
      held.insert(held.end(), x_.begin() + t * kK + cut.k_begin, x_.begin() + t * kK + cut.k_end);
    }
    const auto part = value_of(prepare::row_parallel_shard(matrix_->w4(), cut, prepare::ChannelScale::kWholeRow));
    const auto prepared = value_of(prepare::prepare_w4(part.view(), Numerics::kExact));
    const kernels::W4Matrix view = prepared.view();
    const W4Linear linear{1, kHidden, cut.k(), group_, &view, nullptr};
    seen->out.resize(kTokens * kHidden);
    const SplitRows rows{held.data(), kTokens, cut.k_end - cut.k_begin, cut.k_offset()};
    return apply_row_parallel(linear, rows, execution, seen->out.data(), seen);
  }

  const char* table_;
  int64_t group_;
  std::mt19937 random_;
  std::vector<float> x_;
  std::optional<Canonical> matrix_;
};

// `codes`: of the whole rows.
void expect_columns_of(const std::vector<uint8_t>& codes, const KShard& cut, const std::vector<uint8_t>& found) {
  ASSERT_EQ(found.size(), static_cast<size_t>(kTokens * cut.k()));
  for (int64_t i = 0; i < kTokens * cut.k(); ++i) {
    const int64_t row = i / cut.k(), column = cut.pad_begin + i % cut.k();
    const int expected = cut.holds(column) ? codes[static_cast<size_t>(row * kK + column)] : 0;
    ASSERT_EQ(found[static_cast<size_t>(i)], expected) << "row " << row << " column " << column;
  }
}

class SplitOProj : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!kernels::select_table(GetParam())) GTEST_SKIP() << "this processor has no " << GetParam();
  }
};

TEST_P(SplitOProj, CodesAndScalesAreThoseOfOneRank) {
  for (const int64_t group : {32, 128, 0}) {
    SplitProjection projection(GetParam(), group);
    const Seen one = projection.run(1, SplitScale::kAgreed)[0];
    ASSERT_EQ(one.codes.size(), static_cast<size_t>(kTokens * kK));
    ASSERT_EQ(one.scales.size(), static_cast<size_t>(kTokens));
    for (const int ranks : {2, 3}) {
      const auto seen = projection.run(ranks, SplitScale::kAgreed);
      for (int r = 0; r < ranks; ++r) {
        SCOPED_TRACE(::testing::Message() << "rank " << r << " of " << ranks << ", group " << group);
        ASSERT_EQ(seen[static_cast<size_t>(r)].scales, one.scales);
        expect_columns_of(one.codes, projection.shard(r, ranks), seen[static_cast<size_t>(r)].codes);
        ASSERT_EQ(seen[static_cast<size_t>(r)].out, seen[0].out) << "every rank has the same output";
      }
    }
  }
}

TEST_P(SplitOProj, ScalesOfTheirOwnAreNot) {
  SplitProjection projection(GetParam(), 128);
  const Seen one = projection.run(1, SplitScale::kAgreed)[0];
  for (const int ranks : {2, 3}) EXPECT_NE(projection.run(ranks, SplitScale::kLocal)[0].scales, one.scales);
}

INSTANTIATE_TEST_SUITE_P(Tables, SplitOProj, ::testing::Values("ref", "hopper", "generic", "avx2", "avx512", "amx"),
                         [](const auto& table) { return std::string(table.param); });

}  // namespace
}  // namespace quadrille::moe
