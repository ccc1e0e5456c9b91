// SPDX-License-Identifier: Apache-2.0
// Who runs in a step: order, budgets, admission, preemption. Sequences are moved forward by hand, without a model.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include "engine/batch.h"

namespace quadrille::engine {
namespace {

constexpr int64_t kVocab = 10;

class SchedulerTest : public ::testing::Test {
 protected:
  void make(EngineOptions options, int64_t pages, int64_t rows = 1000) {
    blocks = std::make_unique<BlockManager>(pages, options.prefix_cache);
    scheduler = std::make_unique<Scheduler>(options, rows, *blocks);
  }
  void add(int64_t prompt, int64_t max_tokens = 100, int32_t prompt_logprobs = -1) {
    Request request;
    request.prompt.assign(static_cast<size_t>(prompt), 1);
    request.max_tokens = max_tokens;
    request.prompt_logprobs = prompt_logprobs;
    scheduler->enqueue(std::make_unique<Sequence>(++last, request, nullptr));
  }
  // (id, begin, count) of every piece; runs the step.
  std::vector<std::array<int64_t, 3>> step() {
    const Plan plan = scheduler->plan();
    batch.build(plan);
    std::vector<std::array<int64_t, 3>> pieces;
    for (const Piece& piece : plan.pieces) {
      pieces.push_back({static_cast<int64_t>(piece.sequence->id()), piece.begin, piece.count});
      scheduler->advance(piece);
    }
    const std::vector<float> logits(kVocab, 0.0F);
    for (const auto& row : batch.rows()) row.sequence->take_logits(row.position, logits, sampler);
    return pieces;
  }
  using Pieces = std::vector<std::array<int64_t, 3>>;
  std::unique_ptr<BlockManager> blocks;
  std::unique_ptr<Scheduler> scheduler;
  Batch batch;
  Sampler sampler;
  RequestId last = 0;
};

TEST_F(SchedulerTest, NothingToDoIsAnEmptyPlan) {
  make({}, 4);
  EXPECT_TRUE(step().empty());
}

TEST_F(SchedulerTest, AnswersFirstThenRunningPromptsThenNewOnes) {
  make({.max_batch_tokens = 20, .prefill_chunk = 16}, 100);
  add(4);
  EXPECT_EQ(step(), (Pieces{{1, 0, 4}}));
  add(40);
  EXPECT_EQ(step(), (Pieces{{1, 4, 1}, {2, 0, 16}}));
  add(9);
  EXPECT_EQ(step(), (Pieces{{1, 5, 1}, {2, 16, 16}, {3, 0, 3}}));
  EXPECT_EQ(step(), (Pieces{{1, 6, 1}, {2, 32, 8}, {3, 3, 6}}));
  EXPECT_EQ(step(), (Pieces{{1, 7, 1}, {2, 40, 1}, {3, 9, 1}}));
}

TEST_F(SchedulerTest, NoMoreSequencesThanAllowed) {
  make({.max_sequences = 2}, 100);
  for (int i = 0; i < 3; ++i) add(2, 2);
  EXPECT_EQ(step().size(), 2U);
  EXPECT_EQ(scheduler->num_waiting(), 1);
  (void)step();
  (void)scheduler->remove(1);
  EXPECT_EQ(step().back(), (std::array<int64_t, 3>{3, 0, 2}));
}

TEST_F(SchedulerTest, AdmitsInOrderAndOnlyWhatHasPages) {
  make({}, 4);
  add(100, 1);  // 2 pages, never more
  add(150, 1);  // 3 pages: waits
  add(10, 1);   // would fit, but comes later
  EXPECT_EQ(step(), (Pieces{{1, 0, 100}}));
  EXPECT_EQ(scheduler->num_waiting(), 2);
  (void)scheduler->remove(1);
  EXPECT_EQ(step(), (Pieces{{2, 0, 150}, {3, 0, 10}}));
}

TEST_F(SchedulerTest, LeavesRoomForAnswersToGrow) {
  make({}, 3);
  add(64, 100);  // one page now, more later
  add(100, 1);   // two pages are free, but the first sequence needs one of them soon
  EXPECT_EQ(step().size(), 1U);
  (void)scheduler->remove(1);
  EXPECT_EQ(step(), (Pieces{{2, 0, 100}}));
}

TEST_F(SchedulerTest, TheYoungestLosesItsPagesAndComesBackFirst) {
  make({}, 4);
  add(60, 120);
  add(60, 120);
  add(60, 120);
  EXPECT_EQ(step().size(), 2U);  // a third would leave no page to grow
  // Positions 60 to 63, then both take their second page at position 64, and need a third at position 128.
  for (int i = 0; i < 68; ++i) EXPECT_EQ(step().size(), 2U) << i;
  EXPECT_EQ(blocks->available(), 0);
  EXPECT_EQ(step(), (Pieces{{1, 128, 1}}));
  EXPECT_EQ(scheduler->preemptions(), 1);
  EXPECT_EQ(scheduler->num_waiting(), 2);
  EXPECT_EQ(scheduler->find(2)->computed, 0);
  EXPECT_EQ(scheduler->find(2)->answer_size(), 69) << "its answer is kept";
  (void)scheduler->remove(1);
  EXPECT_EQ(step(), (Pieces{{2, 0, 129}, {3, 0, 60}})) << "before the third, which is younger";
}

TEST_F(SchedulerTest, ASequenceThatIsTheYoungestPreemptsItself) {
  make({}, 3);
  add(10, 50);    // stays within one page
  add(120, 100);  // takes the two others, then needs a third
  EXPECT_EQ(step().size(), 2U);
  int64_t steps = 0;
  while (scheduler->preemptions() == 0 && ++steps < 50) (void)step();
  EXPECT_EQ(scheduler->preemptions(), 1);
  EXPECT_EQ(scheduler->running().size(), 1U);
  EXPECT_EQ(scheduler->running()[0]->id(), 1U);
  EXPECT_EQ(blocks->available(), 2);
}

TEST_F(SchedulerTest, PromptsWithLogprobsStayWithinTheRows) {
  make({}, 100, 10);
  add(25, 5, 0);
  add(25, 5, 0);
  add(25, 5);
  // Sequence 3 needs one row only and is not held up.
  EXPECT_EQ(step(), (Pieces{{1, 0, 10}, {3, 0, 25}}));
  EXPECT_EQ(step(), (Pieces{{3, 25, 1}, {1, 10, 9}}));
}

TEST_F(SchedulerTest, TheBatchNamesPagesPositionsAndRows) {
  make({.prefill_chunk = 70}, 10);
  add(3);
  (void)step();
  add(100);
  const Plan plan = scheduler->plan();
  batch.build(plan);
  const model::Step s = batch.step();
  ASSERT_EQ(s.ids.size(), 71U);
  EXPECT_EQ(s.page_table_stride, 2);
  EXPECT_EQ(s.page_table[1], -1);
  EXPECT_EQ(s.page_table[0], scheduler->find(1)->pages[0]);
  EXPECT_EQ(s.page_table[3], scheduler->find(2)->pages[1]);
  EXPECT_EQ(s.positions[0], 3);
  EXPECT_EQ(s.positions[70], 69);
  EXPECT_EQ(s.sequences[0], 0);
  EXPECT_EQ(s.sequences[70], 1);
  EXPECT_EQ(std::vector<int32_t>(s.logit_rows.begin(), s.logit_rows.end()), (std::vector<int32_t>{0}))
      << "the prompt goes on, so it wants no logits yet";
}

}  // namespace
}  // namespace quadrille::engine
