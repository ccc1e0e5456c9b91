// SPDX-License-Identifier: Apache-2.0
// The engine's two sides. Callers see the inbox and the mailboxes, under one mutex; sequences, pages and batch belong
// to the thread that steps, which takes the mutex only to fetch what is new and to hand results over.
#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/batch.h"
#include "engine/block_manager.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

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

int64_t rows_within(int64_t bytes, int64_t vocab_size) {
  return bytes / (std::max<int64_t>(vocab_size, 1) * static_cast<int64_t>(sizeof(float)));
}

std::chrono::duration<double> bounded(double seconds) {
  return std::chrono::duration<double>(seconds > 0 ? std::min(seconds, 1e6) : 0.0);
}

}  // namespace

class Engine::Impl {
 public:
  Impl(model::Forward& model, EngineOptions options, TextStreamFactory text_streams)
      : model_(model),
        max_queued_(std::max<int64_t>(options.max_queued, 1)),
        text_streams_(std::move(text_streams)),
        limits_{model.vocab_size(), model.max_positions(), model.num_pages(), text_streams_ != nullptr},
        blocks_(limits_.num_pages, options.prefix_cache),
        scheduler_(options, rows_within(options.max_logit_bytes, limits_.vocab_size), blocks_) {
    metrics_.free_pages = metrics_.total_pages = blocks_.total();
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

  void wait_for_update(RequestId id, double seconds) {
    std::unique_lock lock(mutex_);
    news_.wait_for(lock, bounded(seconds), [&] {
      const auto box = mailboxes_.find(id);
      return box == mailboxes_.end() || has_news(box->second);
    });
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
    bool worked = take_inbox();
    const Plan plan = scheduler_.plan();
    Status status;
    if (!plan.pieces.empty()) {
      worked = true;
      status = run(plan);
    }
    hand_over(plan, status.ok(), std::chrono::duration<double>(Clock::now() - start).count());
    if (!status) return status.error();
    return worked;
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
    for (auto& sequence : arrived) scheduler_.enqueue(std::move(sequence));
    for (const RequestId id : cancelled) {
      Sequence* sequence = scheduler_.find(id);
      if (sequence == nullptr) continue;  // it ended meanwhile
      sequence->finish(FinishReason::kCancelled);
      outbox_.push_back(scheduler_.remove(id));
    }
    return !arrived.empty() || !cancelled.empty();
  }

  // Runs the model over the plan and gives every sequence its rows.
  Status run(const Plan& plan) {
    batch_.build(plan);
    const auto vocab = static_cast<size_t>(limits_.vocab_size);
    const auto& rows = batch_.rows();
    if (logits_.size() < rows.size() * vocab) logits_.resize(rows.size() * vocab);
    const Status status = run_model({logits_.data(), rows.size() * vocab});
    if (!status) {
      fail_running(status.error());
      return status;
    }
    for (const Piece& piece : plan.pieces) scheduler_.advance(piece);
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].sequence->take_logits(rows[i].position, {logits_.data() + i * vocab, vocab}, sampler_);
    }
    for (const Piece& piece : plan.pieces) settle(*piece.sequence);
    return status;
  }

  // An exception of the model is a bug, but not of the requests that share the engine: they end, then it goes on up.
  Status run_model(std::span<float> logits) {
    try {
      return model_.run(batch_.step(), logits);
    } catch (const std::exception& exception) {
      fail_running(make_error(ErrorCode::kInvalidData, "the model failed: {}", exception.what()));
      hand_over(Plan{}, false, 0);
      throw;
    }
  }

  void fail_running(const Error& error) {
    while (!scheduler_.running().empty()) {
      Sequence& sequence = *scheduler_.running().back();
      sequence.fail(error);
      outbox_.push_back(scheduler_.remove(sequence.id()));
    }
  }

  // After its rows: the pages that are full now become reusable, and a sequence that ended leaves.
  void settle(Sequence& sequence) {
    if (sequence.computed >= sequence.prompt_size()) sequence.prompt_is_through();
    if (sequence.update.finish != FinishReason::kError) scheduler_.publish(sequence);
    if (sequence.finished()) outbox_.push_back(scheduler_.remove(sequence.id()));
  }

  void hand_over(const Plan& plan, bool ran, double seconds) {
    const std::lock_guard lock(mutex_);
    for (const auto& sequence : scheduler_.running()) append_update(mailboxes_[sequence->id()], sequence->update);
    for (const auto& sequence : outbox_) append_update(mailboxes_[sequence->id()], sequence->update);
    outbox_.clear();
    if (ran && !plan.pieces.empty()) metrics_.add_step(plan.prefill_tokens, plan.decode_tokens, seconds);
    metrics_.preemptions = scheduler_.preemptions();
    metrics_.prefix_hits_tokens = scheduler_.prefix_hits_tokens();
    metrics_.running = static_cast<int64_t>(scheduler_.running().size());
    metrics_.waiting = scheduler_.num_waiting() + static_cast<int64_t>(inbox_.size());
    metrics_.free_pages = blocks_.available();
    news_.notify_all();
  }

  // Fixed from the start.
  model::Forward& model_;
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
  BlockManager blocks_;
  Scheduler scheduler_;
  Batch batch_;
  Sampler sampler_;
  std::vector<float> logits_;  // [rows, vocab]
  std::vector<std::unique_ptr<Sequence>> outbox_;
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
  impl_->wait_for_update(id, seconds);
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
