// SPDX-License-Identifier: Apache-2.0
// What a model on a device offers beside Forward: it chooses tokens by itself, so the next step can be enqueued before
// the host has seen the tokens of this one.
#pragma once

#include <cstdint>
#include <span>

#include "core/result.h"
#include "model/forward.h"

namespace quadrille::model {

// Greedy steps, at most kInFlight of them at a time. Not thread safe, and not beside Forward::run() while steps are in
// flight.
class AsyncForward {
 public:
  static constexpr int kInFlight = 2;

  virtual ~AsyncForward() = default;
  // Largest step that enqueue() takes.
  virtual int64_t max_async_tokens() const = 0;
  virtual int64_t max_async_rows() const = 0;
  // Enqueues `step` and the greedy choice after each of its logit rows, and returns. Token t has the id step.ids[t], or
  // where taken_from[t] >= 0 the choice of that row of the step enqueued before this one (empty: all from ids).
  // Errors: those of run(); kInvalidArgument for a step that is too large, a row that is none, or one step too many.
  virtual Status enqueue(const Step& step, std::span<const int32_t> taken_from) = 0;
  // Waits for the oldest step in flight: the choices of its logit rows, -1 for a row of logits that holds no number to
  // choose (NaN, +infinity, nothing but -infinity). Valid until the next collect().
  virtual Result<std::span<const int32_t>> collect() = 0;
};

}  // namespace quadrille::model
