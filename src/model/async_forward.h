// SPDX-License-Identifier: Apache-2.0
// What a model on a device offers beside Forward: it chooses tokens by itself, so the next step can be enqueued before
// the host has seen the tokens of this one. The engine asks for it with Forward::async_forward().
#pragma once

#include <cstdint>
#include <span>

#include "core/result.h"
#include "kernels/api/device_decoder_problems.h"
#include "model/forward.h"

namespace quadrille::model {

using kernels::SampleRule;

// At most kInFlight steps at a time, which run in the order of enqueue(). Not thread safe, and not beside
// Forward::run() while steps are in flight.
class AsyncForward {
 public:
  static constexpr int kInFlight = 2;

  virtual ~AsyncForward() = default;
  // Largest step that enqueue() takes.
  virtual int64_t max_async_tokens() const = 0;
  virtual int64_t max_async_sequences() const = 0;
  // Whether enqueue() takes rules; without, every row is greedy.
  virtual bool draws() const = 0;
  // Enqueues `step` and the choice of a token after each of its logit rows, and returns. Token t has the id
  // step.ids[t], or where taken_from[t] >= 0 the choice of that row of the step enqueued before this one (empty: all
  // from ids). rules: one a logit row; empty: all rows are greedy. Nothing given is read after the return.
  // Errors: those of run(), and kInvalidArgument for a step that is too large, a row that is none, or one step too
  // many; the step is not in flight then.
  virtual Status enqueue(const Step& step, std::span<const int32_t> taken_from, std::span<const SampleRule> rules) = 0;
  // Waits for the oldest step in flight, which then is not, whatever came of it: the choices of its logit rows, -1 for
  // a row of logits that holds no number to choose (NaN, +infinity, nothing but -infinity). Valid until the next
  // enqueue().
  virtual Result<std::span<const int32_t>> collect() = 0;
};

}  // namespace quadrille::model
