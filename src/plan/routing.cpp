// SPDX-License-Identifier: Apache-2.0
// Sums over binomial probabilities and one integral.
#include "plan/routing.h"

#include <algorithm>

namespace quadrille::plan {
namespace {

// P(X <= x) of a standard normal number.
double normal_cdf(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0));
}

constexpr double kSpread = 9;  // standard deviations behind which nothing counts

}  // namespace

UniformRouting UniformRouting::of(const moe::RouterRule& rule, double tokens) {
  const auto experts = static_cast<double>(std::max<int64_t>(1, rule.num_experts));
  return {tokens, std::min(1.0, static_cast<double>(rule.top_k) / experts)};
}

double UniformRouting::share_hit() const {
  if (tokens <= 0 || p <= 0) return 0;
  return p >= 1 ? 1 : -std::expm1(tokens * std::log1p(-p));
}

double UniformRouting::tiles_per_expert(int64_t tile) const {
  if (tokens <= 0 || p <= 0) return 0;
  if (p >= 1) return std::ceil(tokens / static_cast<double>(tile));
  // A token count that is no whole number (a busiest rank's) is rounded: the distribution is over whole tokens.
  const auto n = static_cast<int64_t>(std::max(1.0, std::round(tokens)));
  const auto trials = static_cast<double>(n);
  const double sigma = std::sqrt(trials * p * (1 - p));
  const double log_p = std::log(p), log_q = std::log1p(-p);
  const auto first = static_cast<int64_t>(std::max(0.0, std::floor(trials * p - kSpread * sigma - 1)));
  const auto last = std::min(n, static_cast<int64_t>(std::ceil(trials * p + kSpread * sigma + 20)));
  double sum = 0, mass = 0;
  for (int64_t rows = first; rows <= last; ++rows) {
    const auto r = static_cast<double>(rows);
    const double log_mass =
        std::lgamma(trials + 1) - std::lgamma(r + 1) - std::lgamma(trials - r + 1) + r * log_p + (trials - r) * log_q;
    const double m = std::exp(log_mass);
    mass += m;
    sum += m * std::ceil(r / static_cast<double>(tile));
  }
  return sum / mass;
}

double expected_max_normal(int n) {
  if (n <= 1) return 0;
  // E max = integral over x > 0 of (1 - F^n) - integral over x < 0 of F^n, F the distribution of one.
  constexpr int kSteps = 4000;
  constexpr double kStep = kSpread / kSteps;
  double sum = 0;
  for (int i = 0; i < kSteps; ++i) {
    const double x = (i + 0.5) * kStep;
    sum += (1 - std::pow(normal_cdf(x), n) - std::pow(normal_cdf(-x), n)) * kStep;
  }
  return sum;
}

double share_of_ranks_hit(const moe::RouterRule& rule, int ep) {
  const int64_t held = (rule.num_experts + ep - 1) / ep;
  double none = 1;
  for (int64_t i = 0; i < rule.top_k; ++i) {
    none *= std::max(0.0, static_cast<double>(rule.num_experts - held - i)) / static_cast<double>(rule.num_experts - i);
  }
  return 1 - none;
}

RankLoad rank_load(const moe::RouterRule& rule, int ep, int64_t tokens) {
  const auto experts = static_cast<double>(std::max<int64_t>(1, rule.num_experts));
  const auto k = static_cast<double>(rule.top_k), t = static_cast<double>(tokens);
  const double held = std::ceil(experts / ep);
  RankLoad load;
  load.mean = t * k * held / experts;
  if (ep == 1 || experts <= 1) {
    load.busiest = load.mean;
    return load;
  }
  const double share = held / experts;
  const double variance = t * k * share * (1 - share) * (experts - k) / (experts - 1);
  const double most = t * std::min(k, held);
  load.busiest = load.mean + expected_max_normal(ep) * std::sqrt(variance * ep / (ep - 1.0));
  load.busiest = std::clamp(load.busiest, std::min(most, std::max(load.mean, std::ceil(t * k / ep))), most);
  return load;
}

}  // namespace quadrille::plan
