// SPDX-License-Identifier: Apache-2.0
// submit, step, poll until nothing is left; cancels what runs when somebody asks to stop.
#include "cli/generate.h"

#include <iterator>
#include <map>

#include "cli/ranks.h"
#include "cli/signals.h"
#include "core/check.h"

namespace quadrille::cli {
namespace {

using engine::FinishReason;

void append(Answer* answer, engine::Update update) {
  answer->text += update.text;
  std::move(update.tokens.begin(), update.tokens.end(), std::back_inserter(answer->tokens));
  if (!update.prompt_tokens.empty()) answer->prompt_tokens = std::move(update.prompt_tokens);
  answer->finish = update.finish;
}

Error error_of(const engine::Update& update) {
  if (update.error) return *update.error;
  return Error{ErrorCode::kInvalidData, "the engine ended a request without saying why"};
}

// Ctrl-C also stops the model in the middle of a step.
bool was_stopped(const Error& error) {
  return error.code == ErrorCode::kCancelled && interrupted();
}

// The load is over: a rank that waits for the others before its first step has nothing left of it.
void begin_prefill(parallel::Communicator* ranks) {
  if (ranks != nullptr) ranks->set_phase(parallel::Phase::kPrefill);
}

}  // namespace

Result<Answer> generate(engine::Engine& engine, engine::Request request, const TextSink& sink,
                        parallel::Communicator* ranks) {
  QD_TRY(const engine::RequestId id, engine.submit(std::move(request)));
  begin_prefill(ranks);
  Answer answer;
  bool is_cancelled = false, has_reader = true;
  while (answer.finish == FinishReason::kNone) {
    if (!is_cancelled && any_rank(ranks, interrupted() || !has_reader)) {
      engine.cancel(id);
      is_cancelled = true;
    }
    const auto stepped = engine.step();
    if (!stepped && was_stopped(stepped.error())) {
      answer.finish = FinishReason::kCancelled;
      return answer;
    }
    if (!stepped) return stepped.error();
    QD_TRY(engine::Update update, engine.poll(id));
    if (update.finish == FinishReason::kError) return error_of(update);
    QD_CHECK(*stepped || update.finish != FinishReason::kNone, "the engine is idle, and a request is not finished");
    if (sink && !update.text.empty() && !is_cancelled) has_reader = sink(update.text) && has_reader;
    append(&answer, std::move(update));
  }
  return answer;
}

Status generate_all(engine::Engine& engine, std::vector<engine::Request> requests, int64_t window,
                    const std::function<bool(size_t index, Answer answer)>& take, parallel::Communicator* ranks) {
  struct Running {
    size_t index = 0;
    Answer answer;
  };
  std::map<engine::RequestId, Running> running;
  size_t next = 0;
  bool stopping = false, wants_more = true;
  begin_prefill(ranks);
  while (true) {
    stopping = stopping || any_rank(ranks, interrupted() || !wants_more);
    if (stopping) {
      for (const auto& [id, request] : running) engine.cancel(id);
    }
    while (!stopping && next < requests.size() && static_cast<int64_t>(running.size()) < window) {
      auto id = engine.submit(std::move(requests[next]));
      if (!id) return id.error().in(fmt::format("request {}", next + 1));
      running[*id].index = next++;
    }
    if (running.empty()) return {};
    const auto stepped = engine.step();
    if (!stepped) return was_stopped(stepped.error()) ? Status() : Status(stepped.error());
    const size_t running_before = running.size();
    for (auto it = running.begin(); it != running.end();) {
      QD_TRY(engine::Update update, engine.poll(it->first));
      if (update.finish == FinishReason::kError) return error_of(update);
      append(&it->second.answer, std::move(update));
      const FinishReason finish = it->second.answer.finish;
      if (finish == FinishReason::kNone) {
        ++it;
        continue;
      }
      const bool goes_on = finish == FinishReason::kCancelled || take(it->second.index, std::move(it->second.answer));
      wants_more = wants_more && goes_on;
      it = running.erase(it);
    }
    QD_CHECK(*stepped || running.size() < running_before, "the engine is idle, and requests are not finished");
  }
}

}  // namespace quadrille::cli
