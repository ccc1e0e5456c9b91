// SPDX-License-Identifier: Apache-2.0
// The layer over expert-parallel ranks: in every form and for every placement the bits are those of one expert rank,
// also of the same tensor-parallel ranks; rows travel as FP8 codes where the experts are W4A8.
#include <gtest/gtest.h>

#include "unit/moe/expert_parallel_case.h"

namespace quadrille::moe {
namespace {

using kernels::Rounding;

Placement placed(const std::vector<std::vector<int32_t>>& experts) {
  return value_of(Placement::of(EpLayer::kNumExperts, experts));
}

// Even over 2 to 4; uneven with a rank that holds nothing; replicas; a slot that an expert left.
std::vector<Placement> placements() {
  std::vector<Placement> all;
  for (const int ranks : {2, 3, 4}) all.push_back(value_of(Placement::even(EpLayer::kNumExperts, ranks)));
  all.push_back(placed({{6, 0, 3}, {}, {1, 2, 4, 5}}));
  all.push_back(placed({{0, 1, 2, 3, 4, 5, 6}, {}}));
  all.push_back(placed({{4, 0, 1}, {2, 0, 3}, {0, 5, 6, 4}}));
  Placement moved = value_of(Placement::even(EpLayer::kNumExperts, 3));
  value_of(moved.add(0, 2));
  QD_CHECK(moved.remove(0, 0).ok(), "expert 0 has a second holder");
  all.push_back(moved);
  return all;
}

std::vector<EpForm> forms() {
  std::vector<EpForm> all;
  for (const Rounding rounding : {Rounding::kBf16, Rounding::kF32}) {
    for (const bool on_input : {false, true}) {
      for (const bool shared : {false, true}) {
        all.push_back({64, Numerics::kExact, true, rounding, on_input, shared});
        all.push_back({32, Numerics::kVllm, true, rounding, on_input, shared});
        all.push_back({0, Numerics::kExact, false, rounding, on_input, shared});
      }
    }
  }
  return all;
}

std::string name_of(const EpForm& form) {
  return fmt::format("{} {} round {} weight on {} {} shared, {}", form.quantised ? "w4a8" : "bf16",
                     form.numerics == Numerics::kVllm ? "vllm" : "exact",
                     form.rounding == Rounding::kBf16 ? "bf16" : "f32", form.weight_on_input ? "input" : "output",
                     form.shared ? "with" : "without", form.table);
}

TEST(ExpertParallel, EveryFormAndPlacementHasTheBitsOfOneRank) {
  const auto all = placements();
  for (const EpForm& form : forms()) {
    EpLayer layer(form, 11);
    const auto one = layer.run(nullptr);
    for (size_t p = 0; p < all.size(); ++p) {
      ASSERT_TRUE(EpLayer::same_bits(layer.run(&all[p]), one)) << name_of(form) << ", placement " << p;
    }
  }
}

TEST(ExpertParallel, RanksWithoutATokenTakePart) {
  for (const int64_t tokens : {0, 1, 2, 3}) {
    for (const EpForm& form : {EpForm{}, EpForm{0, Numerics::kExact, false, Rounding::kBf16, true, true}}) {
      EpLayer layer(form, tokens);
      const auto one = layer.run(nullptr);
      for (const Placement& placement : placements()) {
        ASSERT_TRUE(EpLayer::same_bits(layer.run(&placement), one)) << tokens << " tokens, " << name_of(form);
      }
    }
  }
}

TEST(ExpertParallel, EveryTableHasTheBitsOfOneRank) {
  for (const char* table : {"ref", "hopper", "avx2", "avx512", "amx"}) {
    if (!kernels::select_table(table)) continue;
    EpForm form;
    form.table = table;
    EpLayer layer(form, 6);
    const auto one = layer.run(nullptr);
    for (const Placement& placement : placements()) {
      ASSERT_TRUE(EpLayer::same_bits(layer.run(&placement), one)) << table;
    }
  }
}

TEST(ExpertParallel, AGridHasTheBitsOfItsTensorRanks) {
  const Placement even = value_of(Placement::even(EpLayer::kNumExperts, 2));
  const Placement replicas = placed({{6, 0, 3}, {}, {1, 2, 4, 5, 0}});
  for (const EpForm& form : {EpForm{}, EpForm{32, Numerics::kVllm, true, Rounding::kF32, true, true},
                             EpForm{0, Numerics::kExact, false, Rounding::kBf16, false, true}}) {
    for (const int64_t tokens : {1, 8}) {
      EpLayer layer(form, tokens);
      for (const int tp : {2, 3}) {
        const Placement whole = value_of(Placement::even(EpLayer::kNumExperts, 1));
        const auto expected = layer.run(&whole, tp);
        ASSERT_TRUE(EpLayer::same_bits(layer.run(&even, tp), expected)) << name_of(form) << ", tp " << tp;
        ASSERT_TRUE(EpLayer::same_bits(layer.run(&replicas, tp), expected)) << name_of(form) << ", tp " << tp;
      }
    }
  }
}

// What rank r of two sends to the other: each token once, its routes, its scale; back: a row a route.
TEST(ExpertParallel, RowsTravelAsFp8CodesWithTheirScales) {
  const Placement placement = value_of(Placement::even(EpLayer::kNumExperts, 2));
  constexpr size_t kRoute = 8, kScale = 4;
  struct Case {
    EpForm form;
    int tp;
    size_t row_there, row_back;
  };
  const Case cases[] = {{{}, 1, kHidden + kScale, 2 * kHidden},
                        {{64, Numerics::kExact, true, Rounding::kF32}, 1, kHidden + kScale, 4 * kHidden},
                        {{}, 2, kHidden + kScale, 4 * kHidden},
                        {{0, Numerics::kExact, false}, 1, 2 * kHidden, 2 * kHidden},
                        {{0, Numerics::kExact, false, Rounding::kF32}, 1, 4 * kHidden, 4 * kHidden}};
  for (const Case& c : cases) {
    EpLayer layer(c.form, 12);
    layer.run(&placement, c.tp);
    for (int rank = 0; rank < 2; ++rank) {
      const TokenRange mine = token_range(12, rank, 2);
      size_t rows[2] = {}, routes[2] = {};  // to the other, from the other
      for (int64_t t = 0; t < 12; ++t) {
        const bool is_mine = t >= mine.begin && t < mine.end;
        size_t away = 0;
        for (int64_t j = 0; j < EpLayer::kTopK; ++j) {
          const int32_t id = layer.ids()[static_cast<size_t>(t * EpLayer::kTopK + j)];
          const int source = is_mine ? rank : 1 - rank;
          away += id >= 0 && placement.serving_rank(id, source) != source ? 1 : 0;
        }
        routes[is_mine ? 0 : 1] += away;
        rows[is_mine ? 0 : 1] += away > 0 ? 1 : 0;
      }
      ASSERT_GT(routes[0], rows[0]) << "some token has two experts on the other rank";
      const auto& sent = layer.sent[static_cast<size_t>(rank * c.tp)];
      ASSERT_EQ(sent.size(), 3u);
      EXPECT_EQ(sent[0], 16u);
      EXPECT_EQ(sent[1], rows[0] * c.row_there + routes[0] * kRoute) << name_of(c.form);
      EXPECT_EQ(sent[2], routes[1] * c.row_back) << name_of(c.form);
    }
  }
}

TEST(ExpertParallel, AnExpertThatIsNoneIsRefusedBeforeAnythingIsSent) {
  const Placement placement = value_of(Placement::even(EpLayer::kNumExperts, 2));
  SendPlan plan;
  const std::vector<int32_t> ids = {0, 1, -1, 7};
  const Status refused = plan_send(ids, 2, 2, placement, 0, &plan);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("token 1, choice 1: expert 7; legal are 0 to 6"), std::string::npos)
      << refused.error().message;
}

TEST(ExpertParallel, RanksWithDifferentPlacementsAreTold) {
  const Placement straight = placed({{0, 1, 2, 3}, {4, 5, 6}}), crossed = placed({{4, 5, 6}, {0, 1, 2, 3}});
  const Status done = parallel::run_rank_threads(2, [&](parallel::Communicator& ranks) -> Status {
    ThreadPool pool(1);
    Arena scratch;
    Execution execution{*kernels::select_table("generic"), {&pool, &scratch}};
    execution.expert_ranks = &ranks;
    const Placement& mine = ranks.rank() == 0 ? straight : crossed;
    const std::vector<float> x(kHidden, 1.0f);
    const std::vector<int32_t> ids = {0, 6};
    SendPlan plan;
    QD_TRY_STATUS(plan_send(ids, 1, 2, mine, ranks.rank(), &plan));
    LinearInput input(x.data(), 1, kHidden);
    QD_TRY(const ReceivedRows received, dispatch_rows(plan, &input, RowForm::kF32, mine, execution));
    return {};
  });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kInvalidData);
  EXPECT_NE(done.error().message.find("the ranks must have the same placement"), std::string::npos)
      << done.error().message;
}

// Every token once, in order, whatever the numbers.
TEST(ExpertParallel, TokenRangesCoverTheStep) {
  for (int64_t tokens = 0; tokens < 20; ++tokens) {
    for (int ranks = 1; ranks < 9; ++ranks) {
      int64_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const TokenRange range = token_range(tokens, rank, ranks);
        ASSERT_EQ(range.begin, next);
        ASSERT_GE(range.size(), tokens / ranks);
        next = range.end;
      }
      ASSERT_EQ(next, tokens);
    }
  }
}

TEST(ExpertParallel, TheTokensOfAllRanksAreGathered) {
  for (const RowForm form : {RowForm::kBf16, RowForm::kF32}) {
    for (const int64_t tokens : {0, 2, 7}) {
      std::vector<float> expected;
      for (int64_t i = 0; i < tokens * 5; ++i) expected.push_back(static_cast<float>(i) - 0.5f);
      const Status done = parallel::run_rank_threads(3, [&](parallel::Communicator& ranks) -> Status {
        ThreadPool pool(1);
        Arena scratch;
        Execution execution{*kernels::select_table("generic"), {&pool, &scratch}};
        execution.expert_ranks = &ranks;
        std::vector<float> all(expected.size(), -1.0f);
        const TokenRange mine = token_range(tokens, ranks.rank(), 3);
        QD_TRY_STATUS(gather_tokens(expected.data() + mine.begin * 5, tokens, 5, form, execution, all.data()));
        if (EpLayer::same_bits(all, expected)) return {};
        return make_error(ErrorCode::kInvalidData, "{} tokens: other rows", tokens);
      });
      ASSERT_TRUE(done) << done.error().message;
    }
  }
}

}  // namespace
}  // namespace quadrille::moe
