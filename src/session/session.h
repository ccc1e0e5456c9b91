// SPDX-License-Identifier: Apache-2.0
// A model in memory that answers requests: tokenizer, ranks, engine, and the thread that loads it, steps it and takes
// it down. Every call may come from any thread. Called by the C functions of api/model_engine.cpp.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernels/api/problems.h"
#include "session/text_model.h"
#include "session/watched_work.h"

namespace quadrille::session {

struct SessionOptions {
  std::string folder;
  std::string device = "cpu";  // "cuda", "cuda:N"
  std::string kernels;         // "": the best table of the CPU that runs here
  std::string gpu_memory;      // "": all that is free
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Rounding rounding = kernels::Rounding::kBf16;
  int threads = 0;  // of all ranks; 0: one a usable core
  int tp = 1;       // rank r takes GPU N + r
  bool run_weight_only_as_fp8 = false;
  bool round_scales = false;
  int64_t cache_tokens = 0;  // 0: for engine.max_sequences of up to 8,192 tokens, at most 2 GiB or one of them
  engine::EngineOptions engine;
};

class Session {
 public:
  // Returns when the model can answer. `watch` sees bytes of the checkpoint. Errors: those of Model::load() and
  // DeviceModel::load(), of the options and of the tokenizer's files; a folder without them has no text.
  static Result<std::unique_ptr<Session>> load(const SessionOptions& options, const Watch& watch);
  // Ends what runs, in the middle of a step where there is one rank, and waits for the thread.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const SessionOptions& options() const;
  const TextModel* text() const;  // null: the folder has no tokenizer
  int64_t vocab_size() const;
  int64_t max_positions() const;  // that a request can have: of the model, and of the cache
  const std::vector<int32_t>& stop_ids() const;
  const nlohmann::json& description() const;
  engine::EngineMetrics metrics() const;

  // As the engine has them. A failure that no step survives (a lost rank, a bug) ends every request with it, and later
  // ones are refused with it.
  Result<engine::RequestId> submit(engine::Request request);
  Result<engine::Update> poll(engine::RequestId id);
  void wait(std::span<const engine::RequestId> ids, double seconds);
  void cancel(engine::RequestId id);
  // logits [ids, vocab] of a prompt, beside what runs. `watch` sees tokens.
  Status logits(std::vector<int32_t> ids, std::span<float> out, const Watch& watch);

 private:
  class Impl;
  explicit Session(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quadrille::session
