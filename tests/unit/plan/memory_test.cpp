// SPDX-License-Identifier: Apache-2.0
// Bytes of ranks: by hand, against what the loader of a real model says, and whether a grid fits.
#include "plan/memory.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <mutex>

#include "layout/w4_hopper64.h"
#include "model/model.h"
#include "parallel/thread_group.h"
#include "plan/plan.h"
#include "support/golden.h"
#include "unit/plan/plan_case.h"

namespace quadrille::plan {
namespace {

using ::testing::HasSubstr;

int64_t part(const RankWeights& weights, PlanPart which) {
  return weights.bytes[static_cast<size_t>(which)];
}

RankWeights first_rank(const PlanShape& shape, int tp, int ep, int ep_index = 0) {
  const auto shards = layout::plan_shards(shard_shape(shape), tp);
  EXPECT_TRUE(shards);
  return rank_weights(plan_matrices(shape), (*shards)[0], {tp, ep, 8}, ep_index);
}

// Records of 64 rows x 128 columns: 4,096 bytes of codes, 128 of bf16 scales with groups of 128.
TEST(PlanMemory, ExpertsByHand) {
  const PlanShape shape = named_plan_shape("qwen3-235b-a22b");
  const int64_t record = 4096 + 128;
  const int64_t whole = 48 * 32 * record + 64 * 12 * record;  // [3072, 4096] and [4096, 1536]
  EXPECT_EQ(part(first_rank(shape, 1, 1), PlanPart::kExperts), 94 * 128 * whole);
  EXPECT_EQ(part(first_rank(shape, 1, 8), PlanPart::kExperts), 94 * 16 * whole);
  EXPECT_EQ(part(first_rank(shape, 1, 60), PlanPart::kExperts), 94 * 3 * whole) << "8 ranks hold 3, the others 2";
  EXPECT_EQ(part(first_rank(shape, 1, 60, 59), PlanPart::kExperts), 94 * 2 * whole);
  const int64_t half = 24 * 32 * record + 64 * 6 * record;
  EXPECT_EQ(part(first_rank(shape, 2, 1), PlanPart::kExperts), 94 * 128 * half);
  EXPECT_EQ(part(first_rank(shape, 2, 4), PlanPart::kExperts), 94 * 32 * half);
}

TEST(PlanMemory, BiasesAndGroupsOf32ByHand) {
  const PlanShape shape = named_plan_shape("gpt-oss-120b");
  const int64_t record = 4096 + 64 * 4 * 2;
  // [5760, 2880] and [2880, 2880], 23 records of 128 columns; fp32 biases of whole row blocks.
  const int64_t expert = 90 * 23 * record + 4 * 5760 + 45 * 23 * record + 4 * 2880;
  EXPECT_EQ(part(first_rank(shape, 1, 1), PlanPart::kExperts), 36 * 128 * expert);
  EXPECT_EQ(part(first_rank(shape, 1, 1), PlanPart::kHead), int64_t{201088} * 2880 * 2);
  EXPECT_EQ(part(first_rank(shape, 1, 1), PlanPart::kRouter), 36 * (128 * 2880 * 2 + 128 * 4));
}

TEST(PlanMemory, CacheByHand) {
  const PlanLoad load{.decode_tokens = 6, .context = 100, .prefill_tokens = 1};
  const auto of = [&](const char* name, int tp, int ep) {
    const auto memory = largest_rank(named_plan_shape(name), {tp, ep, 8}, load);
    EXPECT_TRUE(memory);
    return *memory;
  };
  EXPECT_EQ(of("deepseek-v3", 1, 1).kv_bytes_per_token, 61 * 576 * 2);
  EXPECT_EQ(of("deepseek-v3", 8, 1).kv_bytes_per_token, 61 * 576 * 2);
  EXPECT_EQ(of("qwen3-235b-a22b", 1, 1).kv_bytes_per_token, 94 * 2 * 4 * 128 * 2);
  EXPECT_EQ(of("qwen3-235b-a22b", 8, 1).kv_bytes_per_token, 94 * 2 * 128 * 2) << "one KV head, held twice";
  EXPECT_EQ(of("gpt-oss-120b", 4, 1).kv_bytes_per_token, 36 * 2 * 2 * 64 * 2);
  // Pages of 64 positions; four groups have 2, 2, 2 and no sequences.
  EXPECT_EQ(of("gpt-oss-120b", 1, 1).kv_bytes, 6 * 128 * int64_t{36 * 2 * 8 * 64 * 2});
  EXPECT_EQ(of("gpt-oss-120b", 1, 4).kv_bytes, 2 * 128 * int64_t{36 * 2 * 8 * 64 * 2});
  PlanLoad replicated = load;
  replicated.attention = AttentionOver::kReplicated;
  EXPECT_EQ(largest_rank(named_plan_shape("gpt-oss-120b"), {1, 4, 8}, replicated)->kv_bytes,
            6 * 128 * int64_t{36 * 2 * 8 * 64 * 2});
}

TEST(PlanMemory, TheLargestOfUnevenRanksCounts) {
  const PlanShape shape = named_plan_shape("qwen3-30b-a3b");
  const auto matrices = plan_matrices(shape);
  for (const int tp : {3, 5, 7, 11}) {
    const auto shards = layout::plan_shards(shard_shape(shape), tp);
    ASSERT_TRUE(shards);
    int64_t most = 0, sum = 0;
    for (const auto& shard : *shards) {
      const int64_t bytes = rank_weights(matrices, shard, {tp, 1, 8}, 0).total();
      most = std::max(most, bytes);
      sum += bytes;
    }
    const auto memory = largest_rank(shape, {tp, 1, 8}, {1, 64, 1});
    ASSERT_TRUE(memory);
    EXPECT_EQ(memory->weights.total(), most) << tp;
    EXPECT_GT(most * tp, sum) << "uneven";
  }
}

TEST(PlanMemory, ActivationsGrowWithTokens) {
  const PlanShape shape = named_plan_shape("deepseek-v3");
  int64_t last = 0;
  for (const int64_t tokens : {1, 64, 1024, 16384}) {
    const auto memory = largest_rank(shape, {2, 4, 8}, {1, 64, tokens});
    ASSERT_TRUE(memory);
    EXPECT_GT(memory->activation_bytes, last);
    last = memory->activation_bytes;
  }
}

TEST(PlanMemory, FindsTheFewestGpus) {
  PlanRequest request;
  request.gpu = *gpu_rates("h100");
  request.load = {1, 64, 64};
  const PlanShape shape = named_plan_shape("deepseek-v3");
  const auto one = largest_rank(shape, {1, 1, 8}, request.load);
  ASSERT_TRUE(one);
  request.gpu_memory = one->total();
  ASSERT_TRUE(smallest_that_fits(shape, request, 8));
  EXPECT_EQ(smallest_that_fits(shape, request, 8)->grid.ranks(), 1);
  request.gpu_memory = one->total() - 1;
  const auto fewest = smallest_that_fits(shape, request, 8);
  ASSERT_TRUE(fewest);
  EXPECT_EQ(fewest->grid.ranks(), 2);
  EXPECT_LE(fewest->memory.total(), request.gpu_memory);
  request.gpu_memory = 1000000;
  EXPECT_FALSE(smallest_that_fits(shape, request, 8));
}

TEST(PlanMemory, RefusesGrids) {
  const PlanShape mixtral = named_plan_shape("mixtral-8x7b");
  const auto experts = largest_rank(mixtral, {1, 16, 8}, {});
  ASSERT_FALSE(experts);
  EXPECT_THAT(experts.error().message, HasSubstr("16 expert-parallel groups: the model has 8 experts; legal: 1..8"));
  const auto heads = largest_rank(mixtral, {64, 1, 8}, {});
  ASSERT_FALSE(heads);
  EXPECT_THAT(heads.error().message, HasSubstr("query heads"));
}

TEST(PlanMemory, HostsOfAGrid) {
  EXPECT_EQ((PlanGrid{8, 2, 8}.tp_partners_outside()), 0);
  EXPECT_EQ((PlanGrid{8, 2, 8}.ep_partners_outside()), 1);
  EXPECT_EQ((PlanGrid{16, 1, 8}.tp_partners_outside()), 8);
  EXPECT_EQ((PlanGrid{1, 64, 8}.ep_partners_outside()), 56);
  EXPECT_EQ((PlanGrid{2, 8, 8}.ep_partners_outside()), 4);
  EXPECT_EQ((PlanGrid{3, 3, 8}.tp_partners_outside()), 2) << "rank 8 is alone on its host";
  EXPECT_EQ((PlanGrid{4, 1, 8}.ep_partners_outside()), 0);
}

// What the loader says that it holds, in the layout of the CPU tables, on every rank.
TEST(PlanMemory, IsWhatTheLoaderOfARealModelHolds) {
  const std::string folder = testing::source_path("models/abacus/w4a8");
  if (!std::filesystem::exists(folder + "/model.safetensors")) GTEST_SKIP() << "needs models/abacus with its weights";
  const auto raw = formats::read_hf_config(folder);
  ASSERT_TRUE(raw);
  const auto shape = make_plan_shape("abacus", *raw, {});
  ASSERT_TRUE(shape) << shape.error().message;
  const auto matrices = plan_matrices(*shape);
  const auto description = model::describe_model(folder);
  ASSERT_TRUE(description);
  EXPECT_EQ(num_parameters(*shape), description->parameters);
  EXPECT_EQ(num_active_parameters(*shape), description->active_parameters);
  for (int tp = 1; tp <= 4; ++tp) {
    const auto shards = layout::plan_shards(shard_shape(*shape), tp);
    ASSERT_TRUE(shards);
    std::mutex mutex;
    const Status loaded = parallel::run_rank_threads(tp, [&](parallel::Communicator& ranks) -> Status {
      ThreadPool pool(1);
      model::LoadOptions options;
      options.pool = &pool;
      options.ranks = &ranks;
      QD_TRY(const auto model, model::Model::load(folder, options));
      const std::scoped_lock lock(mutex);
      const layout::ModelShard& shard = (*shards)[static_cast<size_t>(ranks.rank())];
      const RankWeights weights = rank_weights(matrices, shard, {tp, 1, 8}, 0, PlanLayout::kLanes16);
      EXPECT_EQ(static_cast<uint64_t>(weights.total()), model->memory().weight_bytes) << ranks.rank() << " of " << tp;
      EXPECT_EQ(static_cast<uint64_t>(part(weights, PlanPart::kExperts)), model->memory().expert_bytes);
      return {};
    });
    EXPECT_TRUE(loaded) << loaded.error().message;
  }
}

// The same model in the layout of the GPU: the size function of the layout over the loader's own list of modules.
TEST(PlanMemory, IsTheSizeOfTheGpuLayoutOfARealModel) {
  const std::string folder = testing::source_path("models/abacus/w4a8");
  if (!std::filesystem::exists(folder + "/model.safetensors")) GTEST_SKIP() << "needs models/abacus with its weights";
  const auto shape = make_plan_shape("abacus", *formats::read_hf_config(folder), {});
  const auto description = model::describe_model(folder);
  ASSERT_TRUE(shape && description);
  int64_t expected = 0;
  for (const model::PlannedModule& m : description->plan.modules) {
    ASSERT_FALSE(m.has_bias);
    expected += m.count * (m.is_w4 ? layout::W4Hopper64{m.n, m.k, m.group_size, false}.num_bytes() : 2 * m.n * m.k);
  }
  EXPECT_EQ(first_rank(*shape, 1, 1).total(), expected);
}

}  // namespace
}  // namespace quadrille::plan
