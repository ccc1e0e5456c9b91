// SPDX-License-Identifier: Apache-2.0
// What the models of a verification are asked: token sequences from a seed, a prompt, or problems of a file. Called by
// cmd_verify.cpp and verify_devices.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/args.h"
#include "cli/eval_dataset.h"
#include "cli/verify_texts.h"
#include "cli/verify_trace.h"
#include "core/result.h"
#include "engine/engine.h"
#include "model/config.h"
#include "session/text_model.h"

namespace quadrille::cli {

struct VerifyOptions {
  ModelOptions model;
  std::string other, against, prompt, problems;
  int64_t count = 0;
  int64_t max_tokens = 32;
  bool as_json = false;
};

struct Subject {
  std::optional<session::TextModel> text;
  std::vector<Problem> problems;
  std::vector<engine::Request> requests;

  engine::TextStreamFactory streams() const { return text ? text->text_streams() : engine::TextStreamFactory(); }
  // Positions that the longest request needs.
  int64_t longest() const;
};

// Three sequences of up to 40 tokens.
Sequences built_in_sequences(int64_t vocabulary, int64_t longest, uint64_t seed);
// Greedy requests: of problems, of --prompt, else `sequences`. Errors name the file and the problem.
Result<Subject> make_subject(const VerifyOptions& options, const model::ModelConfig& config,
                             const Sequences& sequences);
// Problems whose text ends in the right answer.
int64_t count_right(const std::vector<Problem>& problems, const Texts& texts);

}  // namespace quadrille::cli
