// SPDX-License-Identifier: Apache-2.0
// The filters and the draw; see sampler.h for their definitions. Weights are on a grid, so sums have one
// value whatever their order: the device draws the same tokens (numerics/sampling.h).
#include "engine/sampler.h"

#include <algorithm>

#include "engine/logprobs.h"
#include "engine/philox.h"
#include "numerics/sampling.h"

namespace quadrille::engine {
namespace {

bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

double sum_of_weights(std::span<const Candidate> candidates) {
  double sum = 0;
  for (const Candidate& candidate : candidates) sum += candidate.weight;
  return sum;
}

// The first candidate, in ascending ids, at which the running sum of weights exceeds `uniform` of the whole sum.
int32_t draw(std::span<const Candidate> candidates, double uniform) {
  const double target = uniform * sum_of_weights(candidates);  // below the sum, since uniform <= 1 - 2^-53
  double running = 0;
  for (const Candidate& candidate : candidates) {
    running += candidate.weight;
    if (running > target) return candidate.id;
  }
  return candidates.back().id;
}

}  // namespace

Result<int32_t> Sampler::sample(std::span<const float> logits, const SamplingParams& params, uint64_t index,
                                std::span<const int32_t> seen) {
  if (params.repetition_penalty != 1) logits = penalise(logits, params.repetition_penalty, seen);
  if (params.temperature == 0) {
    QD_TRY(const float max, checked_max(logits));
    return static_cast<int32_t>(std::find(logits.begin(), logits.end(), max) - logits.begin());
  }
  QD_TRY(const auto kept, filter(logits, params));
  return draw(kept, uniform_draw(params.seed, index));
}

Result<std::span<const Candidate>> Sampler::filter(std::span<const float> logits, const SamplingParams& params) {
  QD_TRY(const float max, checked_max(logits));
  const double temperature = params.temperature;
  candidates_.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    const auto steps = numerics::weight_steps(logits[id], max, temperature);
    const double weight = static_cast<double>(steps) * numerics::kWeightGrid;
    if (weight > 0) candidates_.push_back({logits[id], static_cast<int32_t>(id), weight});
  }
  if (params.top_k > 0) keep_top_k(params.top_k);
  if (params.top_p < 1) keep_top_p(params.top_p);
  if (params.min_p > 0) {
    const double least = params.min_p;
    std::erase_if(candidates_, [least](const Candidate& c) { return c.weight < least; });
  }
  return std::span<const Candidate>(candidates_);
}

// The rule of CTRL (Keskar et al. 2019, section 4.1) as the field applies it: a positive logit is divided by the
// penalty, another multiplied, once for each distinct id.
std::span<const float> Sampler::penalise(std::span<const float> logits, float penalty, std::span<const int32_t> seen) {
  penalised_.assign(logits.begin(), logits.end());
  for (const int32_t id : seen) {
    float& logit = penalised_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
  return penalised_;
}

void Sampler::keep_top_k(int64_t k) {
  if (k >= static_cast<int64_t>(candidates_.size())) return;
  ranked_ = candidates_;
  const auto last = ranked_.begin() + (k - 1);
  std::nth_element(ranked_.begin(), last, ranked_.end(), ranks_before);
  keep_up_to(*last);
}

void Sampler::keep_top_p(double top_p) {
  const double target = top_p * sum_of_weights(candidates_);
  ranked_ = candidates_;
  double running = 0;
  // Ranks are sorted in pieces that grow: most rows need the first few of a large vocabulary.
  for (size_t begin = 0, end = 0; begin < ranked_.size(); begin = end) {
    end = std::min(ranked_.size(), std::max<size_t>(64, begin * 4));
    const auto first = ranked_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = ranked_.begin() + static_cast<std::ptrdiff_t>(end);
    if (last != ranked_.end()) std::nth_element(first, last, ranked_.end(), ranks_before);
    std::sort(first, last, ranks_before);
    for (auto at = first; at != last; ++at) {
      running += at->weight;
      if (running >= target) return keep_up_to(*at);
    }
  }
}

void Sampler::keep_up_to(const Candidate& last) {
  std::erase_if(candidates_, [cut = last](const Candidate& c) { return ranks_before(cut, c); });
}

}  // namespace quadrille::engine
