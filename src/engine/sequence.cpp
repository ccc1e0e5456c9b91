// SPDX-License-Identifier: Apache-2.0
// What a sequence does with its logits; see sequence.h.
#include "engine/sequence.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "engine/logprobs.h"

namespace quadrille::engine {

Sequence::Sequence(RequestId id, Request request, std::unique_ptr<TextStream> stream)
    : id_(id),
      request_(std::move(request)),
      tokens_(request_.prompt),
      num_known_(prompt_size()),
      stream_(std::move(stream)),
      stops_(request_.stop_strings) {
  update.id = id_;
  for (const int32_t token : tokens_) note_seen(token);
}

int64_t Sequence::pending() const {
  const bool is_full = request_.max_tokens > 0 && answer_size() >= request_.max_tokens;
  return is_full ? 0 : size() - planned;
}

bool Sequence::wants_logits(int64_t position) const {
  if (position == size() - 1 && request_.max_tokens > 0) return true;
  return position >= scored_ && position < positions_to_score();
}

int64_t Sequence::positions_to_score() const {
  if (request_.prompt_logits) return prompt_size();
  return request_.prompt_logprobs < 0 ? 0 : prompt_size() - 1;
}

int64_t Sequence::first_unscored() const {
  return scored_ >= positions_to_score() ? size() : scored_;
}

void Sequence::take_logits(int64_t position, std::span<const float> logits, Sampler& sampler) {
  if (finished()) return;
  if (position < positions_to_score()) return score_prompt(position, logits);
  QD_CHECK(position == size() - 1, "logits that nobody asked for");
  draw_token(logits, sampler);
}

void Sequence::score_prompt(int64_t position, std::span<const float> logits) {
  QD_CHECK(position == scored_, "prompt positions are scored in order");
  if (request_.prompt_logits) {
    request_.prompt_logits(logits);
    scored_ += 1;
    return;
  }
  const int32_t next = tokens_[static_cast<size_t>(position + 1)];
  auto scored = score_token(logits, next, request_.prompt_logprobs);
  if (!scored) return fail(scored.error().in(fmt::format("after prompt token {}", position)));
  prompt_outputs_.push_back(std::move(*scored));
  scored_ += 1;
  if (scored_ + 1 == prompt_size()) update.prompt_tokens = std::move(prompt_outputs_);
}

void Sequence::prompt_is_through() {
  if (!finished() && request_.max_tokens == 0) finish(FinishReason::kLength);
}

void Sequence::draw_token(std::span<const float> logits, Sampler& sampler) {
  const auto drawn = sampler.sample(logits, request_.sampling, static_cast<uint64_t>(answer_size()), seen_);
  if (!drawn) return fail(in_answer(drawn.error()));
  if (is_stop(*drawn)) return finish(FinishReason::kStop);
  auto scored = score_token(logits, *drawn, request_.logprobs);
  if (!scored) return fail(in_answer(scored.error()));
  tokens_.push_back(*drawn);
  add_token(std::move(*scored));
}

model::SampleRule Sequence::rule() const {
  const SamplingParams& s = request_.sampling;
  return {s.temperature, s.top_k, s.top_p, s.min_p, s.seed, static_cast<uint64_t>(answer_size())};
}

bool Sequence::host_reads(int64_t position) const {
  const bool is_scored = position < positions_to_score();
  return is_scored || request_.logprobs >= 0 || request_.sampling.repetition_penalty != 1;
}

void Sequence::expect_token(int32_t row) {
  tokens_.push_back(-1);
  awaited_row_ = row;
}

void Sequence::take_choice(int32_t id) {
  if (finished()) return;
  QD_CHECK(num_known_ < size(), "a token that nobody awaits");
  if (id < 0) {
    return fail(in_answer(make_error(ErrorCode::kInvalidData,
                                     "the model's logits hold NaN or +infinity, or nothing but -infinity, expected "
                                     "numbers; its weights or scales are damaged or overflow")));
  }
  if (is_stop(id)) return finish(FinishReason::kStop);
  tokens_[static_cast<size_t>(num_known_)] = id;
  TokenOutput token;
  token.id = id;
  add_token(std::move(token));
}

void Sequence::forget_awaited() {
  tokens_.resize(static_cast<size_t>(num_known_));
}

bool Sequence::is_stop(int32_t id) const {
  const auto& stop_ids = request_.stop_ids;
  return !request_.ignore_stop_ids && std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end();
}

Error Sequence::in_answer(const Error& error) const {
  return error.in(fmt::format("before token {} of the answer", num_known_ - prompt_size()));
}

// `token` is in tokens_, the first of those that were not known.
void Sequence::add_token(TokenOutput token) {
  const int32_t id = token.id;
  num_known_ += 1;
  update.tokens.push_back(std::move(token));
  note_seen(id);
  if (stream_ != nullptr) add_text(stream_->push(id));
  if (!finished() && num_known_ - prompt_size() == request_.max_tokens) finish(FinishReason::kLength);
}

void Sequence::add_text(const std::string& text) {
  auto piece = stops_.push(text);
  update.text += piece.text;
  if (piece.stopped) update.finish = FinishReason::kStop;
}

void Sequence::finish(FinishReason reason) {
  QD_CHECK(!finished(), "a request ends once");
  // The tokenizer may still hold text back, and that may complete a stop string.
  if (stream_ != nullptr) {
    add_text(stream_->finish());
    update.text += stops_.finish().text;
  }
  if (!finished()) update.finish = reason;
}

void Sequence::fail(Error error) {
  update.error = std::move(error);
  update.finish = FinishReason::kError;
}

void Sequence::note_seen(int32_t id) {
  if (request_.sampling.repetition_penalty == 1) return;
  const auto index = static_cast<size_t>(id);
  if (index >= is_seen_.size()) is_seen_.resize(index + 1);
  if (is_seen_[index]) return;
  is_seen_[index] = true;
  seen_.push_back(id);
}

}  // namespace quadrille::engine
