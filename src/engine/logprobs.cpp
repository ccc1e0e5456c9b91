// SPDX-License-Identifier: Apache-2.0
// Log-probabilities in double; see logprobs.h.
#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "engine/reproducible_math.h"

namespace quadrille::engine {

Result<float> checked_max(std::span<const float> logits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float max = -kInfinity;
  bool bad = false;
  for (const float x : logits) {
    bad |= !(x < kInfinity);
    max = x > max ? x : max;
  }
  if (bad) {
    const auto first = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < kInfinity); });
    return make_error(ErrorCode::kInvalidData,
                      "the model's logit of id {} is {}, expected a number; its weights or scales are damaged or "
                      "overflow",
                      first - logits.begin(), *first);
  }
  if (max == -kInfinity) {
    return make_error(ErrorCode::kInvalidData, "all {} logits of the model are -infinity, expected one finite number",
                      logits.size());
  }
  return max;
}

Result<TokenOutput> score_token(std::span<const float> logits, int32_t id, int32_t count) {
  TokenOutput output;
  output.id = id;
  if (count < 0) return output;
  QD_TRY(const float max, checked_max(logits));
  double sum = 0;
  for (const float x : logits) sum += reproducible_exp(static_cast<double>(x) - max);
  const double log_sum = reproducible_log(sum);
  const auto logprob = [&](int32_t token) {
    return static_cast<float>((static_cast<double>(logits[static_cast<size_t>(token)]) - max) - log_sum);
  };
  output.logprob = logprob(id);
  if (count == 0) return output;

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto better = [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  };
  const size_t kept = std::min(order.size(), static_cast<size_t>(count));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), better);
  for (size_t i = 0; i < kept; ++i) output.top.push_back({order[i], logprob(order[i])});
  return output;
}

}  // namespace quadrille::engine
