// SPDX-License-Identifier: Apache-2.0
// Continuous batching; see scheduler.h for the rules.
#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace quadrille::engine {

Scheduler::Scheduler(const EngineOptions& options, int64_t max_logit_rows, BlockManager& blocks)
    : options_(options), max_logit_rows_(std::max<int64_t>(max_logit_rows, 1)), blocks_(blocks) {
  options_.max_batch_tokens = std::max<int64_t>(options_.max_batch_tokens, 1);
  options_.max_sequences = std::max<int64_t>(options_.max_sequences, 1);
  options_.prefill_chunk = std::max<int64_t>(options_.prefill_chunk, 1);
}

void Scheduler::enqueue(std::unique_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

Sequence* Scheduler::find(RequestId id) {
  for (const auto& sequence : running_) {
    if (sequence->id() == id) return sequence.get();
  }
  for (const auto& sequence : waiting_) {
    if (sequence->id() == id) return sequence.get();
  }
  return nullptr;
}

void Scheduler::for_each_admitted(const std::function<void(Sequence&)>& visit) const {
  for (const auto& sequence : running_) visit(*sequence);
  for (const auto& sequence : waiting_) {
    if (!sequence->was_admitted) return;  // those that lost their pages wait in front
    visit(*sequence);
  }
}

Plan Scheduler::plan(bool is_ahead) {
  Plan plan;
  tokens_left_ = options_.max_batch_tokens;
  rows_left_ = max_logit_rows_;
  plan_answers(plan);
  plan_prompts(plan);
  admit(plan);
  QD_CHECK(!plan.pieces.empty() || is_ahead || (running_.empty() && waiting_.empty()),
           "a sequence waits and none runs");
  return plan;
}

// Sequences with one token left to run: answers that grow. A preempted sequence is younger than the one that grows, so
// it is in no piece yet.
void Scheduler::plan_answers(Plan& plan) {
  for (size_t i = 0; i < running_.size() && tokens_left_ > 0; ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.pending() == 1 && grow(sequence)) add_piece(plan, sequence, 1);
  }
}

void Scheduler::plan_prompts(Plan& plan) {
  for (const auto& sequence : running_) {
    if (sequence->pending() > 1) add_prompt_piece(plan, *sequence);
  }
}

void Scheduler::admit(Plan& plan) {
  while (!waiting_.empty() && tokens_left_ > 0 && static_cast<int64_t>(running_.size()) < options_.max_sequences) {
    // Nothing left to run: its last token is on its way, and its end frees its place.
    if (waiting_.front()->pending() == 0 || !claim_pages(*waiting_.front())) return;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    add_prompt_piece(plan, *running_.back());
  }
}

void Scheduler::add_piece(Plan& plan, Sequence& sequence, int64_t count) {
  const int64_t begin = sequence.planned, end = begin + count;
  const bool is_answer = count == 1 && sequence.pending() == 1 && sequence.answer_size() > 0;
  plan.pieces.push_back({&sequence, begin, count, is_answer, sequence.pages_lost});
  sequence.planned = end;
  tokens_left_ -= count;
  const int64_t scored_end = std::min(end, sequence.prompt_size() - 1);
  rows_left_ -= std::max<int64_t>(scored_end - std::max(begin, sequence.first_unscored()), 0);
  if (end == sequence.size()) rows_left_ -= 1;
}

// The next piece of a prompt, as long as chunk, batch and rows of logits allow. The first piece of a step is never
// empty, since max_logit_rows is at least 1.
void Scheduler::add_prompt_piece(Plan& plan, Sequence& sequence) {
  int64_t count = std::min({sequence.pending(), options_.prefill_chunk, tokens_left_});
  if (sequence.first_unscored() < sequence.size()) {
    const int64_t without_rows = std::max<int64_t>(sequence.first_unscored() - sequence.planned, 0);
    count = std::min(count, without_rows + std::max<int64_t>(rows_left_, 0));
  }
  if (count > 0) add_piece(plan, sequence, count);
}

// Makes room for the token at the end of an answer. False when that cost the sequence itself its place.
bool Scheduler::grow(Sequence& sequence) {
  while (static_cast<int64_t>(sequence.pages.size()) < pages_for(sequence.size())) {
    if (const auto page = blocks_.allocate()) {
      sequence.pages.push_back(*page);
      continue;
    }
    const bool itself = running_.back().get() == &sequence;
    QD_CHECK(!itself || running_.size() > 1, "a sequence that runs alone must fit into the cache");
    preempt_youngest();
    if (itself) return false;
  }
  return true;
}

// Pages for all known tokens of a waiting sequence, as far as possible out of the prefix cache. Beside running
// sequences enough must stay free for each of them to grow by a page, or the newcomer would soon be preempted.
bool Scheduler::claim_pages(Sequence& sequence) {
  // The last token is always run, since its logits are wanted.
  const int64_t reusable = std::min(sequence.size() - 1, sequence.first_unscored());
  const auto match = blocks_.match(sequence.tokens(), reusable / kPage);
  int64_t needed = pages_for(sequence.size());
  for (const int32_t page : match.pages) needed -= blocks_.references(page) > 0 ? 1 : 0;
  if (needed + growth_reserve() > blocks_.available()) return false;

  for (const int32_t page : match.pages) blocks_.retain(page);
  sequence.pages = match.pages;
  while (static_cast<int64_t>(sequence.pages.size()) < pages_for(sequence.size())) {
    const auto page = blocks_.allocate();
    QD_CHECK(page.has_value(), "pages that were counted are gone");
    sequence.pages.push_back(*page);
  }
  sequence.published = static_cast<int64_t>(match.pages.size());
  sequence.chain = match.chain;
  sequence.computed = sequence.planned = sequence.published * kPage;
  prefix_hits_tokens_ += sequence.computed;
  // What it finds after a preemption may be its own pages: no merit of the cache.
  if (!sequence.was_admitted) sequence.update.cached_prompt_tokens = sequence.computed;
  sequence.was_admitted = true;
  return true;
}

int64_t Scheduler::growth_reserve() const {
  return std::count_if(running_.begin(), running_.end(), [](const auto& sequence) {
    return static_cast<int64_t>(sequence->pages.size()) < pages_for(sequence->final_positions());
  });
}

void Scheduler::preempt_youngest() {
  std::unique_ptr<Sequence> sequence = std::move(running_.back());
  running_.pop_back();
  drop_pages(*sequence);
  waiting_.push_front(std::move(sequence));
  preemptions_ += 1;
}

void Scheduler::drop_pages(Sequence& sequence) {
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) blocks_.release(*page);
  sequence.pages.clear();
  sequence.computed = sequence.planned = sequence.published = 0;
  sequence.chain = kChainRoot;
  sequence.pages_lost += 1;
}

void Scheduler::advance(const Piece& piece) {
  if (piece.pages_lost != piece.sequence->pages_lost) return;
  QD_CHECK(piece.sequence->computed == piece.begin, "pieces of a sequence run in order");
  piece.sequence->computed += piece.count;
}

void Scheduler::publish(Sequence& sequence) {
  if (!blocks_.prefix_cache()) return;
  for (; sequence.published < sequence.computed / kPage; ++sequence.published) {
    const auto index = static_cast<size_t>(sequence.published);
    sequence.chain =
        blocks_.publish(sequence.pages[index], sequence.chain, sequence.tokens().subspan(index * kPage, kPage));
  }
}

std::unique_ptr<Sequence> Scheduler::remove(RequestId id) {
  std::unique_ptr<Sequence> removed;
  const auto is_it = [id](const auto& sequence) { return sequence->id() == id; };
  if (const auto at = std::find_if(running_.begin(), running_.end(), is_it); at != running_.end()) {
    removed = std::move(*at);
    running_.erase(at);
  } else if (const auto queued = std::find_if(waiting_.begin(), waiting_.end(), is_it); queued != waiting_.end()) {
    removed = std::move(*queued);
    waiting_.erase(queued);
  }
  if (removed != nullptr) drop_pages(*removed);
  return removed;
}

}  // namespace quadrille::engine
