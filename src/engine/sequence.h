// SPDX-License-Identifier: Apache-2.0
// One request on its way through the engine: its tokens, its pages, how far it is computed, and what it has to tell.
// Touched by the stepping thread alone: scheduler.cpp moves pages and progress, engine.cpp takes the results.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/block_manager.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/stop_strings.h"
#include "engine/text_stream.h"
#include "model/async_forward.h"

namespace quadrille::engine {

class Sequence {
 public:
  Sequence(RequestId id, Request request, std::unique_ptr<TextStream> stream);

  RequestId id() const { return id_; }  // ascending in the order of submission
  int64_t prompt_size() const { return static_cast<int64_t>(request_.prompt.size()); }
  // Tokens of prompt and answer; the last ones may be on their way from the device, their ids unknown.
  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t num_known() const { return num_known_; }
  int64_t pending() const;  // tokens to run that are in no step yet
  int64_t answer_size() const { return size() - prompt_size(); }
  std::span<const int32_t> tokens() const { return tokens_; }
  // Positions that will be in the cache when the answer has its full length: the last token is never run.
  int64_t final_positions() const { return prompt_size() + (request_.max_tokens > 0 ? request_.max_tokens - 1 : 0); }
  bool finished() const { return update.finish != FinishReason::kNone; }

  // Whether the logits after the token at `position` are needed: for the prompt's log-probabilities or logits, where
  // they are missing, or to draw the next token.
  bool wants_logits(int64_t position) const;
  // The first position of the prompt whose logits are asked for and missing; size() when none is. Positions
  // before it may come out of the prefix cache.
  int64_t first_unscored() const;
  // Takes the logits [vocab] after `position`, in ascending positions: log-probabilities, the next token, its text, the
  // end. What is new goes to `update`; a row that is no row of numbers ends the request with kError.
  void take_logits(int64_t position, std::span<const float> logits, Sampler& sampler);

  // How the device would draw the next token, and whether it must be left to the host, which needs the logits after
  // `position`: for a repetition penalty or log-probabilities.
  model::SampleRule rule() const;
  bool host_reads(int64_t position) const;
  // The next token is on its way: row `row` of the step that was enqueued last.
  void expect_token(int32_t row);
  int32_t awaited_row() const { return awaited_row_; }  // of the token expected last
  // The oldest token on its way is `id`; -1: its row of logits was no row of numbers.
  void take_choice(int32_t id);
  // Tokens on their way will not come.
  void forget_awaited();

  // Every position of the prompt has been run: a request for no answer ends here.
  void prompt_is_through();

  void finish(FinishReason reason);  // once; gives out the text that was held back
  void fail(Error error);            // the same with kError

  // Pages and progress: the scheduler's.
  std::vector<int32_t> pages;  // of positions [64 i, 64 i + 64), each with one reference of this sequence
  int64_t computed = 0;        // positions whose keys and values are in the pages
  int64_t planned = 0;         // these, and those of steps on their way
  int64_t pages_lost = 0;      // how often it lost its pages: what was planned before counts no more
  int64_t published = 0;       // leading pages that the prefix cache knows
  Chain chain = kChainRoot;    // after those
  bool was_admitted = false;   // it has had pages, and may have lost them since
  Update update;               // since the last hand-over to the caller

 private:
  int64_t positions_to_score() const;  // of the prompt, from the first on
  void score_prompt(int64_t position, std::span<const float> logits);
  void draw_token(std::span<const float> logits, Sampler& sampler);
  bool is_stop(int32_t id) const;
  Error in_answer(const Error& error) const;
  void add_token(TokenOutput token);
  void add_text(const std::string& text);
  void note_seen(int32_t id);

  RequestId id_;
  Request request_;
  std::vector<int32_t> tokens_;  // prompt and answer, -1 for those on their way
  int64_t num_known_ = 0;        // of these
  int32_t awaited_row_ = -1;
  std::unique_ptr<TextStream> stream_;
  StopStrings stops_;
  std::vector<TokenOutput> prompt_outputs_;  // of prompt tokens 1, 2, ...; given out when complete
  int64_t scored_ = 0;                       // positions whose logits were taken for those, or handed on
  std::vector<int32_t> seen_;                // distinct ids of tokens_, with a repetition penalty
  std::vector<bool> is_seen_;                // by id
};

}  // namespace quadrille::engine
