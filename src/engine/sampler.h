// SPDX-License-Identifier: Apache-2.0
// Chooses the next token from a row of logits. Pure: the same logits, parameters, index and seen ids give the same
// token on every machine. Called by the engine, one row at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace quadrille::engine {

// An id that may be drawn, with its share. Ids are compared by rank: the larger logit first, of equals the lower id.
struct Candidate {
  float logit = 0;  // after the repetition penalty
  int32_t id = 0;
  double weight = 0;  // e^((logit - largest logit) / temperature) down to a multiple of 2^-34: 1 for the best
};

class Sampler {
 public:
  // logits: [vocab]. `index`: tokens that the answer already has. `seen`: the distinct ids of prompt and answer, read
  // only with a repetition penalty. Errors: kInvalidData where a logit is NaN or +infinity, or all are -infinity.
  Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params, uint64_t index,
                         std::span<const int32_t> seen);

  // What sample() draws from when the temperature is above 0, in ascending ids: the ids of weight > 0, then
  //   top-k  the k first by rank;
  //   top-p  the shortest run of first ranks whose weights add up to top_p of all weights left by top-k, or more;
  //   min-p  weight >= min_p (so the probability is at least min_p times that of the best).
  // `logits` after the penalty. The span is good until the next call.
  Result<std::span<const Candidate>> filter(std::span<const float> logits, const SamplingParams& params);

 private:
  std::span<const float> penalise(std::span<const float> logits, float penalty, std::span<const int32_t> seen);
  void keep_top_k(int64_t k);
  void keep_top_p(double top_p);
  void keep_up_to(const Candidate& last);

  std::vector<float> penalised_;
  std::vector<Candidate> candidates_;  // in ascending ids
  std::vector<Candidate> ranked_;      // scratch of the filters
};

}  // namespace quadrille::engine
