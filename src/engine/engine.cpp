// SPDX-License-Identifier: Apache-2.0
// The engine's two sides. Callers see the inbox and the mailboxes, under one mutex; sequences, pages and steps belong
// to the thread that steps (step_runner.h), which takes the mutex only to fetch what is new and to hand results over.
#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/step_runner.h"

namespace quadrille::engine {
namespace {

using Clock = std::chrono::steady_clock;

// Moves what is new in `from` to the end of `to`.
void append_update(Update& to, Update& from) {
  std::move(from.tokens.begin(), from.tokens.end(), std::back_inserter(to.tokens));
  std::move(from.prompt_tokens.begin(), from.prompt_tokens.end(), std::back_inserter(to.prompt_tokens));
  to.text += from.text;
  to.cached_prompt_tokens = from.cached_prompt_tokens;
  to.finish = from.finish;
  if (from.error) to.error = std::move(from.error);
  from.tokens.clear();
  from.prompt_tokens.clear();
  from.text.clear();
}

bool has_news(const Update& update) {
  return !update.tokens.empty() || !update.text.empty() || !update.prompt_tokens.empty() ||
         update.finish != FinishReason::kNone;
}

std::chrono::duration<double> bounded(double seconds) {
  return std::chrono::duration<double>(seconds > 0 ? std::min(seconds, 1e6) : 0.0);
}

}  // namespace

class Engine::Impl {
 public:
  Impl(model::Forward& model, EngineOptions options, TextStreamFactory text_streams)
      : max_queued_(std::max<int64_t>(options.max_queued, 1)),
        text_streams_(std::move(text_streams)),
        limits_{model.vocab_size(), model.max_positions(), model.num_pages(), text_streams_ != nullptr},
        runner_(model, options) {
    metrics_.free_pages = metrics_.total_pages = limits_.num_pages;
  }

  Result<RequestId> submit(Request request) {
    QD_TRY_STATUS(check_request(request, limits_));
    auto stream = text_streams_ ? text_streams_() : nullptr;
    const std::lock_guard lock(mutex_);
    if (metrics_.waiting >= max_queued_) {
      return make_error(ErrorCode::kCapacity, "{} requests wait already, the limit is {}; try again later",
                        metrics_.waiting, max_queued_);
    }
    const RequestId id = ++last_id_;
    inbox_.push_back(std::make_unique<Sequence>(id, std::move(request), std::move(stream)));
    mailboxes_[id].id = id;
    metrics_.waiting += 1;
    work_.notify_all();
    return id;
  }

  Result<Update> poll(RequestId id) {
    const std::lock_guard lock(mutex_);
    const auto box = mailboxes_.find(id);
    if (box == mailboxes_.end()) {
      return make_error(ErrorCode::kNotFound, "no request {}: never submitted, or its end was polled already", id);
    }
    Update result = std::move(box->second);
    if (result.finish != FinishReason::kNone) {
      mailboxes_.erase(box);
    } else {
      box->second = Update{};
      box->second.id = id;
      box->second.cached_prompt_tokens = result.cached_prompt_tokens;
    }
    return result;
  }

  bool wait_for_update(std::span<const RequestId> ids, double seconds) {
    std::unique_lock lock(mutex_);
    const auto is_new = [&](RequestId id) {
      const auto box = mailboxes_.find(id);
      return box == mailboxes_.end() || has_news(box->second);
    };
    return news_.wait_for(lock, bounded(seconds), [&] { return std::any_of(ids.begin(), ids.end(), is_new); });
  }

  void cancel(RequestId id) {
    const std::lock_guard lock(mutex_);
    const auto box = mailboxes_.find(id);
    if (box == mailboxes_.end() || box->second.finish != FinishReason::kNone) return;
    cancelled_.push_back(id);
    work_.notify_all();
  }

  Result<bool> step() {
    const std::lock_guard stepping(step_mutex_);
    const auto start = Clock::now();
    const bool fetched = take_inbox();
    const Result<bool> worked = run_step();
    hand_over(std::chrono::duration<double>(Clock::now() - start).count());
    runner_.drop_useless();
    if (!worked) return worked.error();
    return fetched || *worked;
  }

  void wait_for_work(double seconds) {
    std::unique_lock lock(mutex_);
    work_.wait_for(lock, bounded(seconds), [&] {
      return stop_waiting_ || !cancelled_.empty() || metrics_.waiting > 0 || metrics_.running > 0;
    });
    stop_waiting_ = false;
  }

  void stop_waiting() {
    const std::lock_guard lock(mutex_);
    stop_waiting_ = true;
    work_.notify_all();
  }

  EngineMetrics metrics() const {
    const std::lock_guard lock(mutex_);
    return metrics_;
  }

 private:
  // Fetches new requests and cancellations. True when there was one.
  bool take_inbox() {
    std::vector<std::unique_ptr<Sequence>> arrived;
    std::vector<RequestId> cancelled;
    {
      const std::lock_guard lock(mutex_);
      arrived.swap(inbox_);
      cancelled.swap(cancelled_);
    }
    for (auto& sequence : arrived) runner_.add(std::move(sequence));
    for (const RequestId id : cancelled) runner_.cancel(id);
    return !arrived.empty() || !cancelled.empty();
  }

  // What ended by an exception of the model is told before it goes on up.
  Result<bool> run_step() {
    try {
      return runner_.step();
    } catch (...) {
      hand_over(0);
      throw;
    }
  }

  void hand_over(double seconds) {
    const StepRunner::Done done = runner_.take_done();
    const Scheduler& scheduler = runner_.scheduler();
    const std::lock_guard lock(mutex_);
    scheduler.for_each_admitted(
        [this](Sequence& sequence) { append_update(mailboxes_[sequence.id()], sequence.update); });
    for (const auto& sequence : runner_.ended()) append_update(mailboxes_[sequence->id()], sequence->update);
    runner_.clear_ended();
    if (done.steps > 0) metrics_.add_steps(done.steps, done.prefill_tokens, done.decode_tokens, seconds);
    metrics_.preemptions = scheduler.preemptions();
    metrics_.prefix_hits_tokens = scheduler.prefix_hits_tokens();
    metrics_.running = static_cast<int64_t>(scheduler.running().size());
    metrics_.waiting = scheduler.num_waiting() + static_cast<int64_t>(inbox_.size());
    metrics_.free_pages = runner_.blocks().available();
    news_.notify_all();
  }

  // Fixed from the start.
  const int64_t max_queued_;
  const TextStreamFactory text_streams_;
  const RequestLimits limits_;

  // Shared, under mutex_.
  mutable std::mutex mutex_;
  std::condition_variable work_, news_;
  std::vector<std::unique_ptr<Sequence>> inbox_;
  std::vector<RequestId> cancelled_;
  std::unordered_map<RequestId, Update> mailboxes_;  // every request whose end was not polled
  EngineMetrics metrics_;
  RequestId last_id_ = 0;
  bool stop_waiting_ = false;

  // The stepping thread's, under step_mutex_.
  std::mutex step_mutex_;
  StepRunner runner_;
};

Engine::Engine(model::Forward& model, EngineOptions options, TextStreamFactory text_streams)
    : impl_(std::make_unique<Impl>(model, options, std::move(text_streams))) {}
Engine::~Engine() = default;
Result<RequestId> Engine::submit(Request request) {
  return impl_->submit(std::move(request));
}
Result<Update> Engine::poll(RequestId id) {
  return impl_->poll(id);
}
void Engine::wait_for_update(RequestId id, double seconds) {
  impl_->wait_for_update({&id, 1}, seconds);
}
bool Engine::wait_for_update(std::span<const RequestId> ids, double seconds) {
  return impl_->wait_for_update(ids, seconds);
}
void Engine::cancel(RequestId id) {
  impl_->cancel(id);
}
Result<bool> Engine::step() {
  return impl_->step();
}
void Engine::wait_for_work(double seconds) {
  impl_->wait_for_work(seconds);
}
void Engine::stop_waiting() {
  impl_->stop_waiting();
}
EngineMetrics Engine::metrics() const {
  return impl_->metrics();
}

}  // namespace quadrille::engine
