// SPDX-License-Identifier: Apache-2.0
// Continuous batching over one model: submit, poll, cancel from any thread; step() from one. Sequences join and leave
// at every step, prompts go in chunks beside decoding sequences, and when pages run out the youngest sequence is
// preempted and recomputed. The answer to a request is bitwise the same whatever else is in the batch.
#pragma once

#include <memory>
#include <span>

#include "engine/metrics.h"
#include "engine/options.h"
#include "engine/request.h"
#include "engine/text_stream.h"
#include "model/forward.h"

namespace quadrille::engine {

class Engine {
 public:
  // `model` must outlive the engine. Without a factory, updates carry ids and no text, and stop strings are refused.
  Engine(model::Forward& model, EngineOptions options, TextStreamFactory text_streams = nullptr);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a request. Errors, before anything is queued: empty prompt, id outside the vocabulary, prompt + max_tokens
  // beyond max_positions or beyond what the whole cache holds (kCapacity, with the numbers), a full queue (kCapacity),
  // sampling values out of range.
  Result<RequestId> submit(Request request);
  // What is new for `id`; kNotFound for an unknown id or one whose finish was already polled. A request stays known
  // until its finish is polled.
  Result<Update> poll(RequestId id);
  // Blocks until poll(id) has something new to say or the time is over.
  void wait_for_update(RequestId id, double seconds);
  // The same for any of several requests. False: the time is over.
  bool wait_for_update(std::span<const RequestId> ids, double seconds);
  // The request ends with kCancelled at the next step; its pages are free then. Unknown ids are ignored.
  void cancel(RequestId id);

  // Runs one step. False when there is nothing to do. An error of the model ends every running request with kError and
  // is returned as well; requests that wait stay, and the next step runs them. Logits that are no numbers end their own
  // request with kError and are no error of the step.
  Result<bool> step();
  // Blocks until step() has something to do, stop_waiting() is called or the time is over: for a server's loop around
  // step(). A stop_waiting() that finds nobody waiting ends the next wait at once.
  void wait_for_work(double seconds);
  void stop_waiting();

  EngineMetrics metrics() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quadrille::engine
