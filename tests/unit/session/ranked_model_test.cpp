// SPDX-License-Identifier: Apache-2.0
// Calls on every rank: each on its own thread, and whichever rank fails, wherever, all come back.
#include "session/ranked_model.h"

#include <gmock/gmock.h>

#include <atomic>
#include <set>
#include <stdexcept>
#include <thread>

#include "parallel/thread_group.h"

namespace quadrille::session {
namespace {

using ::testing::HasSubstr;

constexpr int kRanks = 3;

// A model that is nothing but its rank; it may choose tokens by itself, its own rank each.
class RankOnly final : public model::AnyModel, public model::AsyncForward {
 public:
  explicit RankOnly(parallel::Communicator& ranks, bool is_async = false) : ranks_(ranks), is_async_(is_async) {}
  parallel::Communicator& ranks() const { return ranks_; }

  int64_t vocab_size() const override { return 1; }
  int64_t max_positions() const override { return 1; }
  int64_t num_pages() const override { return 1; }
  // A collective, whose sum every rank gets.
  Status run(const model::Step& /*step*/, std::span<float> logits) override {
    logits[0] = static_cast<float>(ranks_.rank() + 1);
    return ranks_.all_reduce_sum(logits);
  }
  AsyncForward* async_forward() override { return is_async_ ? this : nullptr; }
  int64_t max_async_tokens() const override { return 7; }
  int64_t max_async_sequences() const override { return 5; }
  bool draws() const override { return true; }
  Status enqueue(const model::Step& step, std::span<const int32_t> /*taken_from*/,
                 std::span<const model::SampleRule> rules) override {
    if (in_flight_ == kInFlight) return make_error(ErrorCode::kInvalidArgument, "one step too many");
    in_flight_ += 1;
    choices_.assign(rules.size(), 100 * ranks_.rank() + step.ids[0]);
    return ranks_.barrier();
  }
  Result<std::span<const int32_t>> collect() override {
    in_flight_ -= 1;
    QD_TRY_STATUS(ranks_.barrier());
    return std::span<const int32_t>(choices_);
  }
  const model::ModelConfig& config() const override { return config_; }
  kernels::Numerics numerics() const override { return kernels::Numerics::kExact; }
  kernels::Rounding rounding() const override { return kernels::Rounding::kBf16; }
  std::string backend() const override { return "none"; }
  model::MemoryUse memory() const override { return {}; }
  const std::vector<std::string>& notes() const override { return notes_; }
  void set_observer(model::StepObserver* /*observer*/) override {}
  Status run_moe_block(int64_t /*layer*/, std::span<const float> /*x*/, int64_t /*num_tokens*/,
                       std::span<float> /*out*/) override {
    return {};
  }

 private:
  parallel::Communicator& ranks_;
  const bool is_async_;
  int in_flight_ = 0;
  std::vector<int32_t> choices_;
  model::ModelConfig config_;
  std::vector<std::string> notes_;
};

// The life of a session's ranks around one body of rank 0.
template <typename Lead>
Status live(Lead&& lead, bool is_async = false) {
  RankCalls calls(kRanks);
  return parallel::run_rank_threads(kRanks, [&](parallel::Communicator& ranks) -> Status {
    RankOnly model(ranks, is_async);
    if (ranks.rank() == 0) {
      const Status led = lead(ranks, model, calls);
      calls.stop();
      return led;
    }
    const Status served = calls.serve(ranks.rank(), model);
    calls.leave(ranks.rank());
    return served;
  });
}

int rank_of(model::AnyModel& model) {
  return static_cast<RankOnly&>(model).ranks().rank();
}

TEST(RankCalls, ReachEveryRankOnItsOwnThread) {
  std::atomic<int> count{0};
  std::vector<std::thread::id> threads(kRanks);
  const Status ended = live([&](parallel::Communicator& ranks, model::AnyModel& own, RankCalls& calls) -> Status {
    for (int round = 0; round < 100; ++round) {
      QD_TRY_STATUS(calls.everywhere(ranks, own, [&](model::AnyModel& model) -> Status {
        threads[static_cast<size_t>(rank_of(model))] = std::this_thread::get_id();
        count += 1;
        return {};
      }));
      EXPECT_EQ(count, kRanks * (round + 1)) << "all are through when it returns";
    }
    return {};
  });
  EXPECT_TRUE(ended.ok());
  EXPECT_EQ(std::set(threads.begin(), threads.end()).size(), static_cast<size_t>(kRanks));
}

TEST(RankedModel, RunsTheSameStepEverywhere) {
  const Status ended = live([&](parallel::Communicator& ranks, model::AnyModel& own, RankCalls& calls) -> Status {
    RankedModel all(ranks, own, calls);
    EXPECT_EQ(all.async_forward(), nullptr);
    for (int round = 0; round < 20; ++round) {
      float logit = 0;
      QD_TRY_STATUS(all.run({}, {&logit, 1}));
      EXPECT_EQ(logit, 1 + 2 + 3);
    }
    return {};
  });
  EXPECT_TRUE(ended.ok());
}

TEST(RankedModel, StepsAheadAreEnqueuedEverywhere) {
  const auto lead = [&](parallel::Communicator& ranks, model::AnyModel& own, RankCalls& calls) -> Status {
    RankedModel all(ranks, own, calls);
    EXPECT_EQ(all.async_forward(), &all);
    EXPECT_EQ(all.max_async_tokens(), 7);
    EXPECT_EQ(all.max_async_sequences(), 5);
    EXPECT_TRUE(all.draws());
    const std::vector<model::SampleRule> rules(4);
    for (int32_t id = 1; id < 20; ++id) {
      model::Step next;
      next.ids = {&id, 1};
      QD_TRY_STATUS(all.enqueue(next, {}, rules));
      QD_TRY_STATUS(all.enqueue(next, {}, rules));
      for (int step = 0; step < 2; ++step) {
        QD_TRY(const std::span<const int32_t> choices, all.collect());
        EXPECT_EQ(std::vector<int32_t>(choices.begin(), choices.end()), std::vector<int32_t>(4, id)) << "rank 0's";
      }
    }
    return {};
  };
  EXPECT_TRUE(live(lead, true));
}

// The others wait in a collective that the failing rank never enters.
TEST(RankCalls, ComeBackWhereverOneFails) {
  for (int failing = 0; failing < kRanks; ++failing) {
    for (const bool throws : {false, true}) {
      Status led;
      const Status ended = live([&](parallel::Communicator& ranks, model::AnyModel& own, RankCalls& calls) -> Status {
        led = calls.everywhere(ranks, own, [&](model::AnyModel& model) -> Status {
          if (rank_of(model) != failing) return static_cast<RankOnly&>(model).ranks().barrier();
          if (throws) throw std::runtime_error("planted");
          return make_error(ErrorCode::kCapacity, "planted");
        });
        return led;
      });
      ASSERT_FALSE(led);
      ASSERT_FALSE(ended);
      EXPECT_THAT(ended.error().message, HasSubstr("planted")) << failing;
      EXPECT_THAT(ended.error().message, HasSubstr("rank " + std::to_string(failing)));
    }
  }
}

// One that never began to serve, as after a load that failed.
TEST(RankCalls, DoNotWaitForARankThatLeft) {
  RankCalls calls(2);
  calls.leave(1);
  const auto alone = parallel::thread_communicators(1);
  RankOnly own(*alone[0]);
  EXPECT_TRUE(calls.everywhere(*alone[0], own, [](model::AnyModel&) { return Status(); }));
  EXPECT_TRUE(alone[0]->leave());
}

}  // namespace
}  // namespace quadrille::session
