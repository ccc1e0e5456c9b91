// SPDX-License-Identifier: Apache-2.0
// Draws experts by weight without repetition (the k earliest of exponential clocks), then logits around the choice.
#include "device/layer_routes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "device/random_data.h"

namespace quadrille::testing {
namespace {

// How often an expert is drawn; 0: never.
std::vector<double> expert_rates(const LayerSpec& spec) {
  std::vector<double> rates(static_cast<size_t>(spec.experts), 1.0);
  std::vector<size_t> rank(rates.size());
  std::iota(rank.begin(), rank.end(), 0);
  std::sort(rank.begin(), rank.end(),
            [&](size_t a, size_t b) { return hash(spec.seed, 700 + a) < hash(spec.seed, 700 + b); });
  for (size_t e = 0; e < rates.size(); ++e) {
    if (spec.routing == Routing::kZipf) rates[rank[e]] = std::pow(static_cast<double>(e + 1), -1.2);
    if (spec.routing == Routing::kHalfEmpty && e % 2 == 0) rates[e] = 0;
  }
  return rates;
}

// top_k experts of token `key`, best first.
std::vector<int32_t> draw(const LayerSpec& spec, const std::vector<double>& rates, int64_t key) {
  const auto k = static_cast<size_t>(spec.top_k);
  std::vector<int32_t> chosen(k);
  const uint64_t seed = hash(hash(spec.seed, 11), static_cast<uint64_t>(key));
  if (spec.routing == Routing::kAllToOne) {
    const int64_t first = spec.experts / 2;
    for (size_t j = 0; j < k; ++j) {
      // Given ids may name an expert more than once; a router chooses different ones.
      const int64_t step = spec.input == RouteInput::kIds ? 0 : static_cast<int64_t>(j);
      chosen[j] = static_cast<int32_t>((first + step) % spec.experts);
    }
    return chosen;
  }
  std::vector<std::pair<double, int32_t>> clocks;
  for (size_t e = 0; e < rates.size(); ++e) {
    if (rates[e] == 0) continue;
    const double u = (static_cast<double>(hash(seed, e) >> 11) + 0.5) * 0x1p-53;
    clocks.emplace_back(-std::log(u) / rates[e], static_cast<int32_t>(e));
  }
  std::partial_sort(clocks.begin(), clocks.begin() + static_cast<int64_t>(k), clocks.end());
  for (size_t j = 0; j < k; ++j) chosen[j] = clocks[j].second;
  return chosen;
}

// Logits whose best k are the chosen ones; many ties among the others. One token in sixteen: all tied; where the case
// has NaN, one in eight all NaN.
void write_logits(const LayerSpec& spec, const std::vector<int32_t>& chosen, int64_t key, float* logits) {
  const uint64_t seed = hash(hash(spec.seed, 12), static_cast<uint64_t>(key));
  const bool tied = seed % 16 == 0;
  const bool nan = spec.nonfinite && (seed >> 8) % 8 == 0;
  for (int64_t e = 0; e < spec.experts; ++e) {
    const float eighths = static_cast<float>(hash(seed, static_cast<uint64_t>(e)) % 16) * 0.125f - 1.0f;
    logits[e] = nan ? std::numeric_limits<float>::quiet_NaN() : tied ? 0.25f : eighths;
  }
  if (nan || tied) return;
  for (size_t j = 0; j < chosen.size(); ++j) {
    const float noise = small_number(seed, 5000 + static_cast<int64_t>(j));
    logits[chosen[j]] = 5.0f - static_cast<float>(j) * 0.25f + noise * 0.25f;
  }
}

void write_weights(const LayerSpec& spec, int64_t key, int32_t* ids, float* weights) {
  const uint64_t seed = hash(hash(spec.seed, 13), static_cast<uint64_t>(key));
  for (int64_t j = 0; j < spec.top_k; ++j) {
    const uint64_t h = hash(seed, static_cast<uint64_t>(j));
    weights[j] = static_cast<float>((h & 0xffffffu) + 1) * 0x1p-25f;
    if (h >> 32 == 7) weights[j] = 0.0f;
    if (spec.routing == Routing::kPartlyHere && (h >> 40) % 8 == 0) ids[j] = -1;
  }
}

}  // namespace

LayerRoutes make_routes(const LayerSpec& spec, ThreadPool* pool) {
  LayerRoutes routes;
  const auto slots = static_cast<size_t>(spec.tokens * spec.top_k);
  routes.ids.resize(slots);
  routes.weights.resize(slots);
  const bool with_logits = spec.input != RouteInput::kIds;
  if (with_logits) routes.logits.resize(static_cast<size_t>(spec.tokens * spec.experts));
  const std::vector<double> rates = expert_rates(spec);
  pool->run(spec.tokens, [&](int64_t t) {
    const std::vector<int32_t> chosen = draw(spec, rates, t);
    std::copy(chosen.begin(), chosen.end(), routes.ids.begin() + t * spec.top_k);
    if (with_logits) return write_logits(spec, chosen, t, routes.logits.data() + t * spec.experts);
    write_weights(spec, t, routes.ids.data() + t * spec.top_k, routes.weights.data() + t * spec.top_k);
  });
  if (!with_logits) return routes;
  if (spec.input == RouteInput::kSigmoid) {
    for (int64_t e = 0; e < spec.experts; ++e) {
      routes.correction_bias.push_back(small_number(hash(spec.seed, 14), e) * 0.125f);
    }
  }
  const float* bias = routes.correction_bias.empty() ? nullptr : routes.correction_bias.data();
  if (spec.tokens > 0) {
    moe::route_tokens(spec.rule(), bias, routes.logits.data(), spec.tokens, routes.ids.data(), routes.weights.data(),
                      pool);
  }
  return routes;
}

}  // namespace quadrille::testing
