// SPDX-License-Identifier: Apache-2.0
// Whole models over expert-parallel ranks, which are threads here: the logits are those of one rank to the bit, for
// every placement and step; a rank holds its experts alone; experts move and are copied between steps, and nobody sees
// it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "golden_model.h"
#include "model/model.h"
#include "parallel/communicator.h"
#include "parallel/thread_group.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

using moe::Placement;
using parallel::Communicator;
using ::testing::HasSubstr;

// Steps of 12 tokens of two sequences, then of one token, which leaves ranks without any.
struct Steps {
  std::vector<std::vector<float>> logits;

  Status run(model::Model& model) {
    QD_TRY_STATUS(run_one(model, {5, 6, 7, 8, 9, 10, 11, 12, 3, 4, 5, 2}, {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3},
                          {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}));
    return run_one(model, {77}, {8}, {0});
  }
  Status run_one(model::Model& model, std::vector<int32_t> ids, std::vector<int32_t> positions,
                 std::vector<int32_t> sequences) {
    const std::vector<int32_t> pages = {1, 0};
    std::vector<int32_t> rows;
    for (size_t i = 0; i < ids.size(); ++i) rows.push_back(static_cast<int32_t>(i));
    std::vector<float>& out = logits.emplace_back(ids.size() * static_cast<size_t>(model.vocab_size()));
    return model.run({ids, positions, sequences, pages, 1, rows}, out);
  }
  friend bool operator==(const Steps& a, const Steps& b) {
    if (a.logits.size() != b.logits.size()) return false;
    for (size_t i = 0; i < a.logits.size(); ++i) {
      const auto &x = a.logits[i], &y = b.logits[i];
      if (x.size() != y.size() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) != 0) return false;
    }
    return true;
  }
};

struct Case {
  std::string folder;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Rounding rounding = kernels::Rounding::kBf16;
};

std::vector<Case> cases() {
  std::vector<Case> all = {{data_path("models/olmoe_clip/w4a8-g64")}, {data_path("models/qwen2_moe/w4a8-g64")}};
  all.push_back({all[1].folder, kernels::Numerics::kVllm, kernels::Rounding::kF32});
  return all;
}

model::LoadOptions load_options(const Case& c, ThreadPool* pool) {
  model::LoadOptions options = options_of({"generic", c.numerics, c.rounding});
  options.pool = pool;
  options.default_positions = 128;
  return options;
}

// Calls `use` on every rank of a grid, each with its part of the model.
using Use = std::function<Status(model::Model& model, Communicator& tensor, Communicator& expert)>;
Status on_grid(const Case& c, int tp, int ep, const std::optional<Placement>& placement, const Use& use) {
  return parallel::run_rank_threads(tp * ep, [&](Communicator& world) -> Status {
    QD_TRY(const auto tensor, world.split(world.rank() / tp));
    QD_TRY(const auto expert, world.split(world.rank() % tp));
    ThreadPool pool(1);
    model::LoadOptions options = load_options(c, &pool);
    options.ranks = tensor.get();
    options.expert_ranks = expert.get();
    options.placement = placement;
    QD_TRY(const std::unique_ptr<model::Model> model, model::Model::load(c.folder, options));
    return use(*model, *tensor, *expert);
  });
}

Status wrong(const std::string& what) {
  return make_error(ErrorCode::kInvalidData, "{}", what);
}

Use expects(const Steps& expected) {
  return [&expected](model::Model& model, Communicator&, Communicator&) -> Status {
    Steps steps;
    QD_TRY_STATUS(steps.run(model));
    return steps == expected ? Status() : wrong("other bits");
  };
}

Steps of_one_rank(const Case& c) {
  const auto model = load_model(c.folder, load_options(c, &test_pool()));
  Steps steps;
  EXPECT_TRUE(steps.run(*model).ok());
  return steps;
}

void expect_ok(const Status& status) {
  EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
}

int64_t num_experts(const Case& c) {
  return model::read_model_config(c.folder)->router.num_experts;
}

TEST(ExpertParallelModel, EverySizeHasTheBitsOfOneRank) {
  for (const Case& c : cases()) {
    const Steps one = of_one_rank(c);
    // More ranks than experts too: some hold nothing.
    for (const int ep : {1, 2, 3, 4, static_cast<int>(num_experts(c)) + 1}) {
      SCOPED_TRACE(fmt::format("{} over {}", c.folder, ep));
      expect_ok(on_grid(c, 1, ep, {}, expects(one)));
    }
  }
}

TEST(ExpertParallelModel, UnevenPlacementsAndReplicasHaveTheBitsOfOneRank) {
  for (const Case& c : cases()) {
    const Steps one = of_one_rank(c);
    std::vector<std::vector<int32_t>> experts(3);
    for (int32_t e = 0; e < num_experts(c); ++e) experts[e < 3 ? 2 : 0].push_back(e);
    experts[2].push_back(3);
    const auto placement = Placement::of(num_experts(c), experts);
    ASSERT_TRUE(placement);
    expect_ok(on_grid(c, 1, 3, *placement, expects(one)));
  }
}

TEST(ExpertParallelModel, AGridHasTheBitsOfItsTensorRanks) {
  for (const Case& c : cases()) {
    Steps two;
    expect_ok(on_grid(c, 2, 1, {}, [&two](model::Model& model, Communicator& tensor, Communicator&) -> Status {
      Steps steps;
      QD_TRY_STATUS(steps.run(model));
      if (tensor.rank() == 0) two = steps;
      return {};
    }));
    for (const int ep : {2, 3}) expect_ok(on_grid(c, 2, ep, {}, expects(two)));
  }
}

TEST(ExpertParallelModel, ARankHoldsItsExpertsAlone) {
  const Case c = cases()[1];
  const uint64_t whole = load_model(c.folder, load_options(c, &test_pool()))->memory().expert_bytes;
  const int64_t experts = num_experts(c);
  expect_ok(on_grid(c, 1, 3, {}, [&](model::Model& model, Communicator&, Communicator& expert) -> Status {
    const int64_t held = experts / 3 + (expert.rank() < experts % 3 ? 1 : 0);
    const uint64_t bytes = model.memory().expert_bytes;
    return bytes * static_cast<uint64_t>(experts) == whole * static_cast<uint64_t>(held)
               ? Status()
               : wrong(fmt::format("{} bytes for {} of {} experts of {}", bytes, held, experts, whole));
  }));
}

TEST(ExpertParallelModel, APlacementOfAnotherModelIsRefused) {
  const Case c = cases()[0];
  const Status refused = on_grid(c, 1, 2, *Placement::even(num_experts(c) + 1, 2), expects({}));
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr("experts over 2 ranks; the model has"));
}

}  // namespace
}  // namespace quadrille::testing
