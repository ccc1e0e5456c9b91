// SPDX-License-Identifier: Apache-2.0
// Several threads submit, poll and cancel while one steps. Run under ThreadSanitizer as well.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "expected_answer.h"
#include "fake_async_model.h"

namespace quadrille::engine {
namespace {

using namespace testing;

class Stepper {
 public:
  explicit Stepper(Engine& engine) : engine_(engine) {
    thread_ = std::thread([this] {
      while (!stop_) {
        const auto worked = engine_.step();
        if (!worked.ok() || !*worked) engine_.wait_for_work(0.05);
      }
    });
  }
  ~Stepper() {
    stop_ = true;
    engine_.stop_waiting();
    thread_.join();
  }

 private:
  Engine& engine_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// One client: submits, waits, polls; cancels some of its requests on the way. Returns how many answers were wrong.
int64_t run_client(Engine& engine, uint64_t seed, int64_t requests) {
  std::mt19937_64 rng(seed);
  int64_t wrong = 0;
  for (int64_t i = 0; i < requests; ++i) {
    const Request request = random_request(rng, 150, 60);
    const bool cancels = rng() % 4 == 0;
    const auto id = engine.submit(request);
    if (!id) {
      ++wrong;
      continue;
    }
    if (cancels) {
      if (rng() % 2 == 0) engine.wait_for_update(*id, 0.002);
      engine.cancel(*id);
    }
    Update got;
    while (!collect(engine, *id, got)) engine.wait_for_update(*id, 0.05);
    if (got.finish == FinishReason::kCancelled) {
      wrong += cancels ? 0 : 1;
    } else {
      wrong += same_answer(got, expected_answer(request)) ? 0 : 1;
    }
    (void)engine.metrics();
  }
  return wrong;
}

template <typename Model>
void run_clients_beside_the_step() {
  for (const bool prefix_cache : {false, true}) {
    Model model(kVocab, 14, 512);
    Engine engine(model,
                  {.max_batch_tokens = 48, .max_sequences = 6, .prefill_chunk = 32, .prefix_cache = prefix_cache},
                  letter_streams());
    std::atomic<int64_t> wrong{0};
    {
      const Stepper stepper(engine);
      std::vector<std::thread> clients;
      for (uint64_t seed = 1; seed <= 4; ++seed) {
        clients.emplace_back([&engine, &wrong, seed] { wrong += run_client(engine, seed, 40); });
      }
      for (auto& client : clients) client.join();
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(model.broken_rule, "");
    EXPECT_EQ(engine.metrics().free_pages, 14);
  }
}

TEST(Threads, SubmitPollAndCancelBesideTheStep) {
  run_clients_beside_the_step<FakeModel>();
}
TEST(Threads, SubmitPollAndCancelBesideStepsAhead) {
  run_clients_beside_the_step<FakeAsyncModel>();
}

// step() from several threads is serialised, so even a careless caller gets right answers.
TEST(Threads, TwoSteppersTakeTurns) {
  FakeModel model(kVocab, 14, 512);
  Engine engine(model, {.max_sequences = 4}, letter_streams());
  const Stepper one(engine), two(engine);
  EXPECT_EQ(run_client(engine, 9, 20), 0);
}

TEST(Threads, AWaiterWakesForASubmitAndForAStop) {
  FakeModel model(kVocab, 14, 512);
  Engine engine(model, {});
  const auto start = std::chrono::steady_clock::now();
  std::thread for_work([&] { engine.wait_for_work(600); });
  Request request;
  request.prompt = {1, 2, 3};
  request.max_tokens = 1;
  const RequestId id = *engine.submit(request);
  for_work.join();
  std::thread for_update([&] { engine.wait_for_update(id, 600); });
  run_to_end(engine);
  for_update.join();
  (void)finished(engine, id);
  std::thread for_stop([&] { engine.wait_for_work(600); });
  engine.stop_waiting();
  for_stop.join();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(300));
}

}  // namespace
}  // namespace quadrille::engine
