// SPDX-License-Identifier: Apache-2.0
#include "session/ranked_model.h"

#include <algorithm>

#include "session/watched_work.h"

namespace quadrille::session {

Status RankCalls::everywhere(parallel::Communicator& ranks, model::AnyModel& own, const Call& call) {
  {
    const std::lock_guard lock(mutex_);
    call_ = &call;
    ++number_;
    called_.notify_all();
  }
  const Status mine = without_exceptions([&] { return call(own); });
  if (!mine) ranks.fail(mine.error().message);
  std::unique_lock lock(mutex_);
  answered_.wait(lock, [this] {
    return std::all_of(others_.begin(), others_.end(),
                       [this](const Other& other) { return other.is_gone || other.done == number_; });
  });
  if (!mine) return mine;
  for (const Other& other : others_) QD_TRY_STATUS(other.status);
  return {};
}

void RankCalls::stop() {
  const std::lock_guard lock(mutex_);
  stop_ = true;
  called_.notify_all();
}

Status RankCalls::serve(int rank, model::AnyModel& model) {
  Other& mine = others_[static_cast<size_t>(rank - 1)];
  std::unique_lock lock(mutex_);
  while (true) {
    called_.wait(lock, [&] { return stop_ || number_ > mine.done; });
    if (number_ == mine.done) return {};
    const Call& call = *call_;
    lock.unlock();
    const Status status = without_exceptions([&] { return call(model); });
    lock.lock();
    mine.done = number_;
    mine.status = status;
    answered_.notify_all();
    if (!status) return status;
  }
}

void RankCalls::leave(int rank) {
  const std::lock_guard lock(mutex_);
  others_[static_cast<size_t>(rank - 1)].is_gone = true;
  answered_.notify_all();
}

Status RankedModel::run(const model::Step& step, std::span<float> logits) {
  return calls_.everywhere(ranks_, first_, [&](model::AnyModel& model) -> Status {
    if (&model == &first_) return model.run(step, logits);
    std::vector<float> same(logits.size());  // every rank has them all
    return model.run(step, same);
  });
}

Status RankedModel::enqueue(const model::Step& step, std::span<const int32_t> taken_from,
                            std::span<const model::SampleRule> rules) {
  return calls_.everywhere(
      ranks_, first_, [&](model::AnyModel& model) { return model.async_forward()->enqueue(step, taken_from, rules); });
}

Result<std::span<const int32_t>> RankedModel::collect() {
  std::span<const int32_t> choices;
  QD_TRY_STATUS(calls_.everywhere(ranks_, first_, [&](model::AnyModel& model) -> Status {
    auto collected = model.async_forward()->collect();
    if (!collected) return collected.error();
    if (&model == &first_) choices = *collected;
    return {};
  }));
  return choices;
}

}  // namespace quadrille::session
