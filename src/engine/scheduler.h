// SPDX-License-Identifier: Apache-2.0
// Who runs in the next step, and with how many tokens. Called by engine.cpp; owns the sequences and hands out pages.
//
// Order of a step: tokens of answers first, then pieces of prompts that already run, then waiting requests, each in
// the order of submission, until max_batch_tokens are full. Pages for all known tokens are taken when a sequence is
// admitted, then one page a time as its answer grows. When none is left the youngest running sequence loses its pages,
// waits at the front of the queue and is computed again later.
//
// Nothing waits for ever: the queue is first come, first served; every running sequence is older than every waiting
// one; the oldest running one can take the pages of all others, and check_request() saw that it fits into the cache
// alone.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "engine/block_manager.h"
#include "engine/options.h"
#include "engine/sequence.h"

namespace quadrille::engine {

// Tokens [begin, begin + count) of one sequence in one step; its pages are there.
struct Piece {
  Sequence* sequence = nullptr;
  int64_t begin = 0, count = 0;
  bool is_answer = false;  // run to get the next token of an answer
  int64_t pages_lost = 0;  // Sequence::pages_lost when it was planned
};

struct Plan {
  std::vector<Piece> pieces;
};

class Scheduler {
 public:
  // `max_logit_rows`: rows of logits that a step may ask for before prompts with log-probabilities are cut shorter.
  Scheduler(const EngineOptions& options, int64_t max_logit_rows, BlockManager& blocks);

  void enqueue(std::unique_ptr<Sequence> sequence);  // ids ascend
  Sequence* find(RequestId id);                      // running or waiting; nullptr for others
  // The pieces of the next step. Steps planned before may be on their way still (`is_ahead`); without one the plan is
  // empty only when nothing runs and nothing waits.
  Plan plan(bool is_ahead = false);
  // The model has run `piece`: its positions count as computed, if its pages are still there.
  void advance(const Piece& piece);
  // Full pages of a running sequence become reusable (prefix cache only).
  void publish(Sequence& sequence);
  // Takes the sequence out and frees its pages.
  std::unique_ptr<Sequence> remove(RequestId id);

  const std::vector<std::unique_ptr<Sequence>>& running() const { return running_; }
  // Every sequence that was admitted: those that run, and those that lost their pages.
  void for_each_admitted(const std::function<void(Sequence&)>& visit) const;
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  int64_t prefix_hits_tokens() const { return prefix_hits_tokens_; }

 private:
  void plan_answers(Plan& plan);
  void plan_prompts(Plan& plan);
  void admit(Plan& plan);
  void add_piece(Plan& plan, Sequence& sequence, int64_t count);
  void add_prompt_piece(Plan& plan, Sequence& sequence);
  bool grow(Sequence& sequence);
  bool claim_pages(Sequence& sequence);
  int64_t growth_reserve() const;
  void preempt_youngest();
  void drop_pages(Sequence& sequence);

  EngineOptions options_;
  int64_t max_logit_rows_;
  BlockManager& blocks_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  std::deque<std::unique_ptr<Sequence>> waiting_;   // oldest first, all younger than those that run
  int64_t tokens_left_ = 0, rows_left_ = 0;         // of the step being planned
  int64_t preemptions_ = 0, prefix_hits_tokens_ = 0;
};

}  // namespace quadrille::engine
