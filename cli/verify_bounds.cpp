// SPDX-License-Identifier: Apache-2.0
// The formulas of docs/parallel.md, "What ranks may change".
#include "cli/verify_bounds.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "numerics/bf16.h"

namespace quadrille::cli {
namespace {

using model::Module;

constexpr double kFp32 = 0x1p-24;  // half an ulp, relative
constexpr double kBf16 = 0x1p-8;   // the same of bf16
// A tensor core's step: 33 units of 2^(top - 13) and one of its result's 13 bits (docs/numerics.md section 7).
constexpr double kTensorCoreStep = 34 * 0x1p-13;

double largest(const float* x, int64_t count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(static_cast<double>(x[i])));
  return most;
}

}  // namespace

void SumBounds::see(Module module, const moe::Stage& stage) {
  const std::string_view name = stage.name;
  Rows& rows = rows_[module];
  if (name == "a" || name == "x" || name == "act") rows.k = stage.shape[1];
  if (name == "inv_permuted_idx") {
    const auto* slots = static_cast<const int32_t*>(stage.data);
    slot_of_route_.assign(slots, slots + stage.shape[0] * stage.shape[1]);
  }
  if (name == "gemm2_out") {
    const auto* values = static_cast<const float*>(stage.data);
    rows.width = stage.shape[1];
    rows.values.assign(values, values + stage.shape[0] * stage.shape[1]);
  }
}

void SumBounds::see_routes(const float* weights, int64_t num_tokens, int64_t top_k) {
  weights_.assign(weights, weights + num_tokens * top_k);
  if (rules_.weight_on_input) std::fill(weights_.begin(), weights_.end(), 1.0f);
  top_k_ = top_k;
}

// What re-association can move a sum of k products by, relative to the largest value of its row: both orders make at
// most this many roundings, each relative to a partial sum; sqrt(k) turns the row's size into the sum of magnitudes.
double SumBounds::chain(int64_t k) const {
  const double steps = std::ceil(static_cast<double>(k) / 32);
  const double roundings = 16 + 1 + 2 * steps + 2 + rules_.ranks;
  const double a_step = rules_.tensor_core ? kTensorCoreStep * steps : 0;
  return std::sqrt(static_cast<double>(k)) * (2 * roundings * kFp32) + 2 * a_step;
}

std::vector<float> SumBounds::row_noise(const Rows& rows, const float* y, int64_t count) const {
  std::vector<float> noise;
  for (int64_t r = 0; r < count; ++r) {
    noise.push_back(static_cast<float>(chain(rows.k) * largest(y + r * rows.width, rows.width)));
  }
  return noise;
}

std::vector<float> SumBounds::partial_rows(Module module) const {
  const Rows& rows = rows_.at(module);
  std::vector<float> bound(rows.values.size(), 0.0f);
  if (rules_.ranks == 1 || bound.empty()) return bound;
  const auto noise = row_noise(rows, rows.values.data(), static_cast<int64_t>(bound.size()) / rows.width);
  for (size_t i = 0; i < bound.size(); ++i) {
    // One rank has rounded its row; the ranks have not.
    const float rounding = rules_.rounds_to_bf16 ? static_cast<float>(kBf16) * std::abs(rows.values[i]) : 0.0f;
    bound[i] = rounding + noise[i / static_cast<size_t>(rows.width)];
  }
  return bound;
}

// The bounds of the rows that a token adds up, each times its weight.
void SumBounds::add_rows(Module module, int64_t num_tokens, int64_t width, std::vector<double>* sum) const {
  const auto found = rows_.find(module);
  if (found == rows_.end() || found->second.values.empty()) return;
  const std::vector<float> bound = partial_rows(module);
  const std::vector<float>& values = found->second.values;
  const bool is_routed = module == Module::kExperts;
  const int64_t rows_of_token = is_routed ? top_k_ : 1;
  const double adding = (static_cast<double>(rows_of_token) + rules_.ranks) * 2 * kFp32;
  for (int64_t route = 0; route < num_tokens * rows_of_token; ++route) {
    const int64_t slot = is_routed ? slot_of_route_[static_cast<size_t>(route)] : route;
    if (slot < 0) continue;
    // A gate of the shared expert is at most 1.
    const double weight = is_routed ? std::abs(static_cast<double>(weights_[static_cast<size_t>(route)])) : 1.0;
    const int64_t token = route / rows_of_token;
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(slot * width + i);
      (*sum)[static_cast<size_t>(token * width + i)] += weight * (bound[at] + adding * std::abs(values[at]));
    }
  }
}

std::vector<float> SumBounds::update(Module module, const float* y, int64_t num_tokens, int64_t width) const {
  std::vector<float> bound(static_cast<size_t>(num_tokens * width), 0.0f);
  if (rules_.ranks == 1 || module == Module::kEmbedding) return bound;
  std::vector<double> sum(bound.size(), 0.0);
  if (module == Module::kAttention) {
    Rows rows = rows_.at(module);
    rows.width = width;
    const auto noise = row_noise(rows, y, num_tokens);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = noise[i / static_cast<size_t>(width)];
  } else {
    for (const Module part : {Module::kExperts, Module::kShared, Module::kMlp}) {
      add_rows(part, num_tokens, width, &sum);
    }
  }
  for (size_t i = 0; i < bound.size(); ++i) {
    // Both results are rounded once: half an ulp each, of values that lie this near to each other.
    const double rounding = rules_.rounds_to_bf16 ? kBf16 * (2 * std::abs(static_cast<double>(y[i])) + sum[i]) : 0;
    bound[i] = static_cast<float>(sum[i] + rounding);
  }
  return bound;
}

void Perturbation::stage(int64_t, Module module, const moe::Stage& stage) {
  bounds_.see(module, stage);
}

void Perturbation::router(int64_t, const float*, const int32_t*, const float* weights, int64_t num_tokens, int64_t,
                          int64_t top_k) {
  bounds_.see_routes(weights, num_tokens, top_k);
}

void Perturbation::update(int64_t, Module module, float* y, int64_t num_tokens, int64_t width) {
  const std::vector<float> bound = bounds_.update(module, y, num_tokens, width);
  if (module == Module::kFeedForward) bounds_ = SumBounds(rules_);
  if (module == Module::kEmbedding) return;
  uint64_t bits = 0;
  for (size_t i = 0; i < bound.size(); ++i) {
    bits = i % 64 == 0 ? random_() : bits >> 1;
    y[i] += (bits & 1) != 0 ? bound[i] : -bound[i];
    if (rules_.rounds_to_bf16) y[i] = numerics::round_to_bf16(y[i]);
  }
}

}  // namespace quadrille::cli
