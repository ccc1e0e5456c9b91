// SPDX-License-Identifier: Apache-2.0
// Steps ahead and steps that the host reads; see step_runner.h.
#include "engine/step_runner.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/check.h"

namespace quadrille::engine {
namespace {

// One that runs and one behind it. A plan is made with at most one step on its way, so of the tokens of a sequence at
// most the last is unknown, and it comes out of the step before.
constexpr size_t kOnTheirWay = 2;
static_assert(kOnTheirWay <= model::AsyncForward::kInFlight);

int64_t rows_within(int64_t bytes, int64_t vocab_size) {
  return bytes / (std::max<int64_t>(vocab_size, 1) * static_cast<int64_t>(sizeof(float)));
}

void drop_ended(Plan* plan) {
  std::erase_if(plan->pieces, [](const Piece& piece) { return piece.sequence->finished(); });
}

}  // namespace

StepRunner::StepRunner(model::Forward& model, const EngineOptions& options)
    : model_(model),
      vocab_size_(model.vocab_size()),
      run_ahead_(options.run_ahead),
      blocks_(model.num_pages(), options.prefix_cache),
      scheduler_(options, rows_within(options.max_logit_bytes, vocab_size_), blocks_) {}

StepRunner::~StepRunner() {
  forget_flights();
}

void StepRunner::add(std::unique_ptr<Sequence> sequence) {
  scheduler_.enqueue(std::move(sequence));
}

void StepRunner::cancel(RequestId id) {
  Sequence* sequence = scheduler_.find(id);
  if (sequence == nullptr) return;  // it ended meanwhile
  sequence->finish(FinishReason::kCancelled);
  ended_.push_back(scheduler_.remove(id));
}

Result<bool> StepRunner::step() {
  Plan left;  // for the host to read
  const Status ahead = plan_ahead(&left);
  if (!ahead) {
    // What the model has run before still counts.
    while (!flights_.empty() && collect().ok()) continue;
    fail_running(ahead.error());
    return ahead.error();
  }
  if (left.pieces.empty()) {
    if (flights_.empty()) return false;
    QD_TRY_STATUS(collect());
    return true;
  }
  while (!flights_.empty()) QD_TRY_STATUS(collect());
  drop_ended(&left);
  if (!left.pieces.empty()) QD_TRY_STATUS(run(left));
  return true;
}

// Enqueues steps until two are on their way. A step that the host must read is planned and left to the caller.
Status StepRunner::plan_ahead(Plan* left) {
  model::AsyncForward* const async = run_ahead_ ? model_.async_forward() : nullptr;
  while (flights_.size() < kOnTheirWay) {
    Plan plan = scheduler_.plan(!flights_.empty());
    if (plan.pieces.empty()) return {};
    if (async == nullptr || !can_run_ahead(plan, *async)) {
      *left = std::move(plan);
      return {};
    }
    QD_TRY_STATUS(launch(std::move(plan), *async));
  }
  return {};
}

// Lays the step out in batch_.
bool StepRunner::can_run_ahead(const Plan& plan, const model::AsyncForward& async) {
  batch_.build(plan);
  return !batch_.host_reads(async.draws()) &&
         static_cast<int64_t>(batch_.step().ids.size()) <= async.max_async_tokens() &&
         static_cast<int64_t>(plan.pieces.size()) <= async.max_async_sequences();
}

Status StepRunner::launch(Plan plan, model::AsyncForward& async) {
  QD_TRY_STATUS(ask([&] { return async.enqueue(batch_.step(), batch_.taken_from(), batch_.rules()); }));
  const auto& rows = batch_.rows();
  for (size_t r = 0; r < rows.size(); ++r) rows[r].sequence->expect_token(static_cast<int32_t>(r));
  flights_.push_back({&async, std::move(plan), rows, {}});
  return {};
}

// The results of the oldest step on its way.
Status StepRunner::collect() {
  Flight flight = std::move(flights_.front());
  flights_.pop_front();
  const auto tokens = ask([&] { return flight.async->collect(); });
  if (!tokens) {
    fail_running(tokens.error());
    return tokens.error();
  }
  QD_CHECK(tokens->size() == flight.rows.size(), "a token a row");
  drop_ended(&flight.plan);
  for (const Piece& piece : flight.plan.pieces) scheduler_.advance(piece);
  for (size_t r = 0; r < tokens->size(); ++r) flight.rows[r].sequence->take_choice((*tokens)[r]);
  settle(flight.plan);
  return {};
}

// Runs the model over the plan and gives every sequence its rows.
Status StepRunner::run(const Plan& plan) {
  batch_.build(plan);
  const auto vocab = static_cast<size_t>(vocab_size_);
  const auto& rows = batch_.rows();
  if (logits_.size() < rows.size() * vocab) logits_.resize(rows.size() * vocab);
  const Status status = ask([&] { return model_.run(batch_.step(), {logits_.data(), rows.size() * vocab}); });
  if (!status) {
    fail_running(status.error());
    return status;
  }
  for (const Piece& piece : plan.pieces) scheduler_.advance(piece);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].sequence->take_logits(rows[i].position, {logits_.data() + i * vocab, vocab}, sampler_);
  }
  settle(plan);
  return status;
}

// After its rows: the pages that are full now become reusable, and a sequence that ended leaves.
void StepRunner::settle(const Plan& plan) {
  if (!plan.pieces.empty()) done_.steps += 1;
  for (const Piece& piece : plan.pieces) {
    (piece.is_answer ? done_.decode_tokens : done_.prefill_tokens) += piece.count;
    Sequence& sequence = *piece.sequence;
    if (sequence.computed >= sequence.prompt_size()) sequence.prompt_is_through();
    if (sequence.update.finish != FinishReason::kError) scheduler_.publish(sequence);
    if (sequence.finished()) ended_.push_back(scheduler_.remove(sequence.id()));
  }
}

void StepRunner::clear_ended() {
  if (!flights_.empty()) {
    auto& kept = flights_.back().kept;
    std::move(ended_.begin(), ended_.end(), std::back_inserter(kept));
  }
  ended_.clear();
}

void StepRunner::drop_useless() {
  for (const Flight& flight : flights_) {
    const auto& pieces = flight.plan.pieces;
    const auto goes_on = [](const Piece& piece) { return !piece.sequence->finished(); };
    if (std::any_of(pieces.begin(), pieces.end(), goes_on)) return;
  }
  forget_flights();
}

// Nothing that they bring is of use.
void StepRunner::forget_flights() {
  while (!flights_.empty()) {
    try {
      (void)flights_.front().async->collect();
    } catch (const std::exception&) {  // a bug that showed before, or that no request sees
    }
    flights_.pop_front();
  }
}

void StepRunner::fail_running(const Error& error) {
  forget_flights();
  while (!scheduler_.running().empty()) {
    Sequence& sequence = *scheduler_.running().back();
    sequence.fail(error);
    ended_.push_back(scheduler_.remove(sequence.id()));
  }
  scheduler_.for_each_admitted([](Sequence& sequence) { sequence.forget_awaited(); });
}

// An exception of the model is a bug, but not of the requests that share the engine: they end, then it goes on up.
template <typename Call>
auto StepRunner::ask(const Call& call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::exception& exception) {
    fail_running(make_error(ErrorCode::kInvalidData, "the model failed: {}", exception.what()));
    throw;
  }
}

}  // namespace quadrille::engine
