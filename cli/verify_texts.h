// SPDX-License-Identifier: Apache-2.0
// End to end: the greedy texts of two models, and for each that differs the step where it does, the margin there and
// what ranks may change (docs/parallel.md, "What ranks may change").
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/generate.h"
#include "cli/verify_trace.h"
#include "core/result.h"
#include "model/any_model.h"

namespace quadrille::cli {

struct TextDifference {
  int64_t prompt = 0;
  int64_t step = 0;           // of the answer
  int32_t one = 0, many = 0;  // the tokens; of an ended answer the best of the stop ids
  double margin = 0;          // logit of `one` less that of `many`, on one rank
  double deviation = 0;       // of that difference under Perturbation
  double bound = 0;
  bool is_explained() const { return margin <= bound; }
};

struct Texts {
  std::vector<std::string> text;
  std::vector<std::vector<int32_t>> ids;
};

// The token at `step` of an answer; where it has ended, the stop id that `logits`, those of the step, like best.
int32_t token_at(const std::vector<int32_t>& ids, size_t step, const engine::Request& request,
                 std::span<const float> logits);

// Where two answers to one request part, and what stands before it: the prompt and the part that they share.
struct Parting {
  size_t step = 0;  // of the answer
  std::vector<int32_t> prefix;
};
Parting find_parting(const engine::Request& request, const std::vector<int32_t>& a, const std::vector<int32_t>& b);

// Logits [rows, vocab_size] behind the tokens `rows` of `ids`, in one step over pages of their own.
Result<std::vector<float>> logits_behind(model::Forward& model, const std::vector<int32_t>& ids,
                                         std::span<const int32_t> rows);

// Answers all requests greedily. `ranks`: of `model`, or null.
Result<Texts> answer_greedily(model::Forward& model, engine::TextStreamFactory streams,
                              const std::vector<engine::Request>& requests, int64_t batch,
                              parallel::Communicator* ranks);

// Explains the difference of one prompt's answers, on the model of one rank. `steps`: of all answers together, among
// which the bound shall hold for all.
Result<TextDifference> explain(model::AnyModel& one, const engine::Request& request,
                               const std::vector<int32_t>& ids_one, const std::vector<int32_t>& ids_many, int64_t steps,
                               const SumRules& rules);

}  // namespace quadrille::cli
