// SPDX-License-Identifier: Apache-2.0
// The ranks of a model that are threads of this process, as one model::Forward: what is asked of rank 0 is asked of
// all, each on its own thread, so that one engine drives them. Called by session.cpp.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "model/any_model.h"
#include "model/async_forward.h"
#include "parallel/communicator.h"

namespace quadrille::session {

// What rank 0 asks of the others, one call at a time.
class RankCalls {
 public:
  using Call = std::function<Status(model::AnyModel& model)>;

  explicit RankCalls(int ranks) : others_(static_cast<size_t>(ranks - 1)) {}

  // Rank 0: `call` on the other ranks and on `own`, all at once. Returns when all are through or gone: the error of
  // `own`, or of the lowest rank that has one. An error of `own` fails `ranks`, so that none waits in a collective.
  Status everywhere(parallel::Communicator& ranks, model::AnyModel& own, const Call& call);
  // Rank 0: serve() of the others returns.
  void stop();

  // Rank `rank` > 0: runs calls until stop(), or until one fails, with its error. Call leave() on the way out, also
  // where serve() was never reached.
  Status serve(int rank, model::AnyModel& model);
  void leave(int rank);

 private:
  struct Other {
    uint64_t done = 0;  // the last call that it is through with
    bool is_gone = false;
    Status status;
  };

  std::mutex mutex_;
  std::condition_variable called_, answered_;
  const Call* call_ = nullptr;
  uint64_t number_ = 0;
  bool stop_ = false;
  std::vector<Other> others_;  // of ranks 1, 2, ...
};

class RankedModel final : public model::Forward, public model::AsyncForward {
 public:
  // Of rank 0; all must outlive it.
  RankedModel(parallel::Communicator& ranks, model::AnyModel& first, RankCalls& calls)
      : ranks_(ranks), first_(first), calls_(calls) {}

  int64_t vocab_size() const override { return first_.vocab_size(); }
  int64_t max_positions() const override { return first_.max_positions(); }
  int64_t num_pages() const override { return first_.num_pages(); }
  Status run(const model::Step& step, std::span<float> logits) override;

  AsyncForward* async_forward() override { return first_.async_forward() == nullptr ? nullptr : this; }
  int64_t max_async_tokens() const override { return first_.async_forward()->max_async_tokens(); }
  int64_t max_async_sequences() const override { return first_.async_forward()->max_async_sequences(); }
  bool draws() const override { return first_.async_forward()->draws(); }
  Status enqueue(const model::Step& step, std::span<const int32_t> taken_from,
                 std::span<const model::SampleRule> rules) override;
  Result<std::span<const int32_t>> collect() override;

 private:
  parallel::Communicator& ranks_;
  model::AnyModel& first_;
  RankCalls& calls_;
};

}  // namespace quadrille::session
