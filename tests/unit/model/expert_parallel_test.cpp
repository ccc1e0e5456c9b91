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

// The last layer that has experts.
int64_t last_layer(const Case& c) {
  const auto config = model::read_model_config(c.folder);
  int64_t layer = config->num_layers - 1;
  while (!config->layers[layer].is_moe) --layer;
  return layer;
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

// --- Experts that move ---------------------------------------------------------------------------------------------

using model::ExpertMove;
using Kind = ExpertMove::Kind;

// Where each expert of a layer lies and what it is.
struct Memory {
  std::vector<const std::byte*> places;
  std::vector<std::byte> bytes;
  friend bool operator==(const Memory&, const Memory&) = default;
};
std::vector<Memory> memory_of(const model::Model& model, int64_t layer) {
  std::vector<Memory> all;
  for (int64_t e = 0; e < model.config().router.num_experts; ++e) {
    Memory& memory = all.emplace_back();
    for (const auto part : model.expert_memory(layer, e)) {
      memory.places.push_back(part.data());
      memory.bytes.insert(memory.bytes.end(), part.begin(), part.end());
    }
  }
  return all;
}

// The bytes of an expert as one rank alone has them.
std::vector<std::byte> bytes_of(const model::Model& whole, int64_t layer, int64_t expert) {
  return memory_of(whole, layer)[static_cast<size_t>(expert)].bytes;
}

TEST(ExpertParallelModel, ExpertsMoveBetweenStepsAndNobodySeesIt) {
  for (const Case& c : cases()) {
    const auto whole = load_model(c.folder, load_options(c, &test_pool()));
    Steps one;
    ASSERT_TRUE(one.run(*whole).ok());
    // Away, a copy back, the copy's origin dropped, home into the free slot, a hot expert everywhere.
    const int64_t l = last_layer(c);
    const std::vector<ExpertMove> moves = {{Kind::kMove, l, 1, 0, 2},      {Kind::kReplicate, l, 1, 2, 1},
                                           {Kind::kDrop, l, 1, 2, 0},      {Kind::kMove, l, 1, 1, 0},
                                           {Kind::kReplicate, l, 0, 0, 1}, {Kind::kReplicate, l, 0, 0, 2}};
    expect_ok(on_grid(c, 1, 3, {}, [&](model::Model& model, Communicator&, Communicator& ranks) -> Status {
      for (const ExpertMove& move : moves) {
        const auto before = memory_of(model, move.layer);
        QD_TRY_STATUS(model.move_expert(move));
        const auto after = memory_of(model, move.layer);
        for (size_t e = 0; e < after.size(); ++e) {
          const bool holds = model.placement(move.layer)->holds(ranks.rank(), static_cast<int64_t>(e));
          if (holds == after[e].bytes.empty()) return wrong("the placement and the memory differ");
          if (static_cast<int64_t>(e) != move.expert && !(after[e] == before[e]))
            return wrong("another expert changed");
          if (holds && after[e].bytes != bytes_of(*whole, move.layer, static_cast<int64_t>(e))) {
            return wrong("not the bytes of one rank");
          }
        }
        Steps steps;
        QD_TRY_STATUS(steps.run(model));
        if (!(steps == one)) return wrong("other bits after a move");
      }
      return {};
    }));
  }
}

TEST(ExpertParallelModel, ExpertsMoveInsideTheirColumnOfAGrid) {
  const Case c = cases()[1];
  Steps two;
  expect_ok(on_grid(c, 2, 1, {}, [&two](model::Model& model, Communicator& tensor, Communicator&) -> Status {
    Steps steps;
    QD_TRY_STATUS(steps.run(model));
    if (tensor.rank() == 0) two = steps;
    return {};
  }));
  const int64_t layer = last_layer(c);
  expect_ok(on_grid(c, 2, 2, {}, [&](model::Model& model, Communicator&, Communicator&) -> Status {
    QD_TRY_STATUS(model.move_expert({Kind::kMove, layer, 0, 0, 1}));
    QD_TRY_STATUS(model.move_expert({Kind::kReplicate, layer, 3, 1, 0}));
    Steps steps;
    QD_TRY_STATUS(steps.run(model));
    return steps == two ? Status() : wrong("other bits");
  }));
}

TEST(ExpertParallelModel, MovesThatThePlacementDoesNotAllowChangeNothing) {
  const Case c = cases()[0];
  const Steps one = of_one_rank(c);
  const auto last = static_cast<int64_t>(num_experts(c));
  struct Refused {
    ExpertMove move;
    const char* word;
  };
  const Refused refused[] = {{{Kind::kMove, 0, 0, 1, 0}, "holds expert 0 already"},
                             {{Kind::kReplicate, 0, 0, 1, 1}, "rank 1 does not hold expert 0"},
                             {{Kind::kDrop, 0, 0, 0, 0}, "no other rank holds it"},
                             {{Kind::kMove, 0, last, 0, 1}, "legal are the experts"},
                             {{Kind::kMove, 0, 0, 0, 2}, "ranks 0..1"},
                             {{Kind::kMove, 0, 0, -1, 1}, "rank -1 does not hold"},
                             {{Kind::kMove, 99, 0, 0, 1}, "no layer 99"}};
  expect_ok(on_grid(c, 1, 2, {}, [&](model::Model& model, Communicator&, Communicator&) -> Status {
    const Placement before = *model.placement(0);
    for (const Refused& r : refused) {
      const Status status = model.move_expert(r.move);
      if (status.ok() || status.error().code != ErrorCode::kInvalidArgument) return wrong("not refused");
      if (status.error().message.find(r.word) == std::string::npos) return wrong(status.error().message);
    }
    if (!(*model.placement(0) == before)) return wrong("the placement changed");
    return expects(one)(model, *parallel::single_communicator(), *parallel::single_communicator());
  }));
  const auto whole = load_model(c.folder, load_options(c, &test_pool()));
  ASSERT_FALSE(whole->move_expert({Kind::kMove, 0, 0, 0, 1}).ok()) << "nothing is spread";
}

// Flips one bit of the blob on its way.
class NoisyCommunicator final : public parallel::Communicator {
 public:
  explicit NoisyCommunicator(Communicator& inner)
      : Communicator(inner.rank(), inner.size(), inner.loss()), inner_(inner) {}
  const char* body() const override { return "noisy"; }
  void set_phase(parallel::Phase phase) override {
    phase_ = phase;
    inner_.set_phase(phase);
  }
  parallel::Phase phase() const override { return phase_; }
  void fail(const std::string& why) override { inner_.fail(why); }
  std::optional<size_t> flip;  // which byte of a message that is long enough

 protected:
  Status exchange(parallel::Collective, std::span<const parallel::Bytes> send,
                  std::span<const parallel::WritableBytes> recv) override {
    std::vector<std::byte> to, from;
    std::vector<size_t> to_bytes, from_bytes;
    for (const parallel::Bytes& part : send) {
      to.insert(to.end(), part.begin(), part.end());
      to_bytes.push_back(part.size());
    }
    size_t total = 0;
    for (const parallel::WritableBytes& part : recv) {
      from_bytes.push_back(part.size());
      total += part.size();
    }
    if (flip && to.size() > 1000) to[*flip % to.size()] ^= std::byte{1};
    from.resize(total);
    QD_TRY_STATUS(inner_.all_to_all_v(to, to_bytes, from, from_bytes));
    size_t at = 0;
    for (const parallel::WritableBytes& part : recv) {
      if (!part.empty()) std::memcpy(part.data(), from.data() + at, part.size());
      at += part.size();
    }
    return {};
  }
  Result<std::unique_ptr<Communicator>> make_part(std::vector<int>) override {
    return make_error(ErrorCode::kUnsupported, "not split in these tests");
  }
  Status finish() override { return {}; }

 private:
  Communicator& inner_;
  parallel::Phase phase_ = parallel::Phase::kStart;
};

TEST(ExpertParallelModel, ABlobThatArrivesDamagedChangesNothingOnAnyRank) {
  const Case c = cases()[1];
  const Steps one = of_one_rank(c);
  expect_ok(parallel::run_rank_threads(3, [&](Communicator& world) -> Status {
    NoisyCommunicator noisy(world);
    ThreadPool pool(1);
    model::LoadOptions options = load_options(c, &pool);
    options.expert_ranks = &noisy;
    QD_TRY(const std::unique_ptr<model::Model> model, model::Model::load(c.folder, options));
    const auto before = memory_of(*model, 0);
    const Placement placement = *model->placement(0);
    // In the magic, the version, the name, the shapes, the sizes, the codes.
    for (const size_t at : {size_t{0}, size_t{8}, size_t{32}, size_t{40}, size_t{80}, size_t{170}, size_t{900}}) {
      noisy.flip = at;
      const Status status = model->move_expert({Kind::kMove, 0, 1, 0, 2});
      noisy.flip = {};
      if (status.ok() || status.error().code != ErrorCode::kInvalidData) return wrong("taken");
      const char* word = world.rank() == 2 ? "expert blob: expected" : "another rank could not take it";
      if (status.error().message.find(word) == std::string::npos) return wrong(status.error().message);
      if (!(memory_of(*model, 0) == before) || !(*model->placement(0) == placement)) return wrong("changed");
    }
    QD_TRY_STATUS(model->move_expert({Kind::kMove, 0, 1, 0, 2}));
    Steps steps;
    QD_TRY_STATUS(steps.run(*model));
    return steps == one ? Status() : wrong("other bits");
  }));
}

}  // namespace
}  // namespace quadrille::testing
