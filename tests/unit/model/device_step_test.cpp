// SPDX-License-Identifier: Apache-2.0
// Steps as a device reads them: buckets, pieces, blocks. Integers alone.
#include "model/device_step.h"

#include <gmock/gmock.h>

#include <cstring>
#include <numeric>

namespace quadrille::testing {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using namespace model;  // NOLINT: the subject

// Sequences of which the step has `counts[s]` tokens from position `begins[s]` on; logits of each one's last token.
struct Steps {
  std::vector<int32_t> ids, positions, sequences, pages, rows;
  int64_t stride = 0;

  Steps(const std::vector<std::pair<int32_t, int32_t>>& pieces, int64_t table_stride) : stride(table_stride) {
    for (size_t s = 0; s < pieces.size(); ++s) {
      for (int32_t i = 0; i < pieces[s].second; ++i) {
        ids.push_back(static_cast<int32_t>(100 * (s + 1)) + i);
        positions.push_back(pieces[s].first + i);
        sequences.push_back(static_cast<int32_t>(s));
      }
      rows.push_back(static_cast<int32_t>(ids.size()) - 1);
      for (int64_t p = 0; p < stride; ++p) {
        const bool used = p <= (pieces[s].first + pieces[s].second - 1) / kPagePositions;
        pages.push_back(used ? static_cast<int32_t>(10 * s + p) : -1);
      }
    }
  }
  Step step() const { return {ids, positions, sequences, pages, stride, rows}; }
};

std::vector<int32_t> packed(const Step& step, const PlannedPiece& planned) {
  std::vector<int32_t> block(static_cast<size_t>(block_of(planned.shape).total), -77);
  pack_step(step, planned, block);
  return block;
}
std::vector<int32_t> part(const std::vector<int32_t>& block, int64_t at, int64_t count) {
  return {block.begin() + at, block.begin() + at + count};
}

TEST(DeviceStep, BucketsHoldTheirTokens) {
  for (int64_t tokens = 1; tokens <= 256; ++tokens) {
    const int64_t bucket = bucket_of(tokens);
    ASSERT_GE(bucket, tokens);
    EXPECT_TRUE(bucket == 1 || bucket_of(bucket) == bucket);
    EXPECT_LE(bucket, 2 * tokens) << tokens;
  }
  EXPECT_EQ(bucket_of(33), 48);
  EXPECT_EQ(bucket_of(257), 0);
}

TEST(DeviceStep, ContextBucketsCoverThePositions) {
  EXPECT_EQ(context_bucket_of(1, 40960), 512);
  EXPECT_EQ(context_bucket_of(512, 40960), 512);
  EXPECT_EQ(context_bucket_of(513, 40960), 1024);
  EXPECT_EQ(context_bucket_of(40960, 40960), 40960);
  EXPECT_EQ(context_bucket_of(100, 130), 192);  // whole pages of the limit
  EXPECT_EQ(context_bucket_of(1, 5), 64);
}

TEST(DeviceStep, ADecodeStepIsPaddedToItsBucket) {
  const Steps steps({{70, 1}, {0, 1}, {129, 1}}, 3);
  const Step step = steps.step();
  const auto pieces = cut_step(step, 100, 10);
  ASSERT_EQ(pieces.size(), 1u);
  const PlannedPiece planned = plan_piece(step, pieces[0], 16, 64, 4096);
  const StepShape expected{4, 4, 4, 4, 0, 512, true};
  EXPECT_EQ(planned.shape, expected);
  const StepBlock places = block_of(planned.shape);
  const auto block = packed(step, planned);
  EXPECT_THAT(part(block, places.ids, 4), ElementsAre(100, 200, 300, -1));
  EXPECT_THAT(part(block, places.positions, 4), ElementsAre(70, 0, 129, -1));
  EXPECT_THAT(part(block, places.sequences, 4), ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(part(block, places.page_table, 8), ElementsAre(0, 1, 0, 0, 0, 0, 0, 0));
  EXPECT_THAT(part(block, places.page_table + 16, 8), ElementsAre(20, 21, 22, 0, 0, 0, 0, 0));
  EXPECT_THAT(part(block, places.page_table + 24, 8), Each(0));
  // The same shape whatever the tokens are, up to the bucket.
  const Steps four({{1, 1}, {2, 1}, {3, 1}, {4, 1}}, 1);
  EXPECT_EQ(plan_piece(four.step(), cut_step(four.step(), 100, 10)[0], 16, 64, 4096).shape, expected);
}

TEST(DeviceStep, WhatHasNoBucketIsNotPadded) {
  const Steps decode({{5, 1}, {6, 1}, {7, 1}}, 1);
  EXPECT_EQ(plan_piece(decode.step(), cut_step(decode.step(), 9, 9)[0], 16, 2, 640).shape.num_tokens, 3);
  EXPECT_EQ(plan_piece(decode.step(), cut_step(decode.step(), 9, 9)[0], 16, 0, 640).shape.num_tokens, 3);
  // A prompt beside decoding sequences: tiles and singles, rows by number.
  const Steps mixed({{5, 1}, {0, 40}, {9, 1}}, 2);
  const Step step = mixed.step();
  const PlannedPiece planned = plan_piece(step, cut_step(step, 100, 9)[0], 16, 64, 640);
  const StepShape expected{42, 3, 3, 2, 3, 512, false};
  EXPECT_EQ(planned.shape, expected);
  const auto block = packed(step, planned);
  const StepBlock places = block_of(planned.shape);
  EXPECT_THAT(part(block, places.logit_rows, 3), ElementsAre(0, 40, 41));
  EXPECT_THAT(part(block, places.singles, 2), ElementsAre(0, 41));
  EXPECT_THAT(part(block, places.tiles, 6), ElementsAre(1, 16, 17, 16, 33, 8));
}

TEST(DeviceStep, LongStepsAreCutInOrder) {
  const Steps steps({{0, 10}, {0, 7}, {3, 1}}, 1);
  const Step step = steps.step();
  const auto pieces = cut_step(step, 8, 2);
  std::vector<int64_t> ends, rows;
  int64_t begin = 0, row = 0;
  for (const StepPiece& piece : pieces) {
    EXPECT_EQ(piece.begin, begin);
    EXPECT_EQ(piece.row_begin, row);
    ends.push_back(begin = piece.end);
    rows.push_back(row = piece.row_end);
  }
  EXPECT_THAT(ends, ElementsAre(8, 16, 18));
  EXPECT_THAT(rows, ElementsAre(0, 1, 3));
  // The second piece has its own numbers for its sequences, and its own rows of the table.
  const PlannedPiece second = plan_piece(step, pieces[1], 16, 64, 640);
  EXPECT_THAT(second.rows, ElementsAre(0, 1));
  const auto block = packed(step, second);
  EXPECT_THAT(part(block, block_of(second.shape).logit_rows, 1), ElementsAre(1));
  const PlannedPiece third = plan_piece(step, pieces[2], 16, 64, 640);
  EXPECT_THAT(third.rows, ElementsAre(1, 2));
  const auto last = packed(step, third);
  EXPECT_EQ(last[static_cast<size_t>(block_of(third.shape).page_table)], 10);
}

TEST(DeviceStep, OneSequenceMoreThanFitsBeginsAPiece) {
  const Steps steps({{0, 1}, {0, 1}, {0, 1}, {0, 1}, {0, 1}}, 1);
  EXPECT_EQ(cut_step(steps.step(), 100, 2).size(), 3u);
  EXPECT_EQ(cut_step(steps.step(), 100, 5).size(), 1u);
}

// The rules of a step's rows lie in its block; padding is greedy. With them a step is of another shape: its graph
// draws.
TEST(DeviceStep, RulesTravelInTheBlock) {
  const Steps steps({{70, 1}, {0, 1}, {129, 1}}, 3);
  PlannedPiece planned = plan_piece(steps.step(), cut_step(steps.step(), 100, 10)[0], 16, 64, 4096);
  const StepShape greedy = planned.shape;
  const std::vector<kernels::SampleRule> rules = {
      {0.5f, 7, 0.9f, 0.1f, 1ull << 63, 11}, {0, 0, 1, 0, 2, 12}, {1.5f, 0, 1, 0, 3, 1ull << 40}};
  planned.shape.draws = true;
  planned.rules = rules;
  EXPECT_FALSE(planned.shape == greedy);
  const auto block = packed(steps.step(), planned);
  std::vector<kernels::SampleRule> got(4);
  std::memcpy(got.data(), block.data() + block_of(planned.shape).rules, sizeof(kernels::SampleRule) * got.size());
  for (size_t r = 0; r < rules.size(); ++r) {
    EXPECT_EQ(got[r].temperature, rules[r].temperature);
    EXPECT_EQ(got[r].top_k, rules[r].top_k);
    EXPECT_EQ(got[r].top_p, rules[r].top_p);
    EXPECT_EQ(got[r].min_p, rules[r].min_p);
    EXPECT_EQ(got[r].seed, rules[r].seed);
    EXPECT_EQ(got[r].index, rules[r].index);
  }
  EXPECT_EQ(got[3].temperature, 0);
  EXPECT_THAT(part(block, block_of(planned.shape).page_table, 2), ElementsAre(0, 1));
}

TEST(DeviceStep, ArraysOfABlockDoNotMeet) {
  const StepShape shape{130, 7, 3, 2, 9, 1024, false, true};
  const StepBlock places = block_of(shape);
  const int64_t begins[] = {places.ids,   places.positions, places.sequences,  places.logit_rows, places.singles,
                            places.tiles, places.rules,     places.page_table, places.total};
  const int64_t sizes[] = {130, 130, 130, 3, 2, 18, 3 * 8, 7 * 16};
  for (size_t i = 0; i < std::size(sizes); ++i) {
    EXPECT_EQ(begins[i] % 64, 0);
    EXPECT_LE(begins[i] + sizes[i], begins[i + 1]) << i;
  }
}

}  // namespace
}  // namespace quadrille::testing
