// SPDX-License-Identifier: Apache-2.0
// Continuous batching over one model: submit, poll, cancel from any thread; step() from one. Sequences join and leave
// at every step, prompts go in chunks beside decoding sequences, and when pages run out the youngest sequence is
// preempted and recomputed. The answer to a request is bitwise the same whatever else is in the batch.
#pragma once

#include <functional>
#include <memory>

#include "engine/request.h"
#include "model/forward.h"

namespace quadrille::engine {

struct EngineOptions {
  int64_t max_batch_tokens = 512;  // tokens of one step, decode and prefill chunks together
  int64_t max_sequences = 64;      // sequences that run at the same time
  int64_t prefill_chunk = 512;     // longest piece of one prompt in one step
  int64_t max_queued = 4096;       // requests that may wait; one more is kCapacity
  bool prefix_cache = false;       // reuse full pages by the hash of all tokens up to their end
};

struct EngineMetrics {
  int64_t steps = 0, prefill_tokens = 0, decode_tokens = 0, preemptions = 0, prefix_hits_tokens = 0;
  int64_t running = 0, waiting = 0, free_pages = 0, total_pages = 0;
  double step_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
};

// Turns token ids into text piece by piece; one a request. Given by whoever has the tokenizer.
class TextStream {
 public:
  virtual ~TextStream() = default;
  virtual std::string push(int32_t id) = 0;
  virtual std::string finish() = 0;
};
using TextStreamFactory = std::function<std::unique_ptr<TextStream>()>;

class Engine {
 public:
  // `model` must outlive the engine. Without a factory, updates carry ids and no text, and stop strings are refused.
  Engine(model::Forward& model, EngineOptions options, TextStreamFactory text_streams = nullptr);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Queues a request. Errors, before anything is queued: empty prompt, id outside the vocabulary, prompt + max_tokens
  // beyond max_positions or beyond what the whole cache holds (kCapacity, with the numbers), sampling values out of
  // range.
  Result<RequestId> submit(Request request);
  // What is new for `id`; kNotFound for an unknown id or one whose finish was already polled.
  Result<Update> poll(RequestId id);
  // The request ends with kCancelled at the next step; its pages are free then. Unknown ids are ignored.
  void cancel(RequestId id);

  // Runs one step. False when there is nothing to do. An error of the model ends every running request with kError.
  Result<bool> step();
  // Blocks until a request is queued, stop_waiting() is called or the time is over: for a server's loop around step().
  void wait_for_work(double seconds);
  void stop_waiting();

  EngineMetrics metrics() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace quadrille::engine
