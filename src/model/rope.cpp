// SPDX-License-Identifier: Apache-2.0
// The formulas behind rope.h.
#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace quadrille::model {
namespace {

// The dimension whose frequency makes `turns` turns over the original positions.
double yarn_dimension(const RopeConfig& rope, int64_t head_dim, double turns) {
  const double d = static_cast<double>(head_dim);
  return d * std::log(rope.original_positions / (turns * 2 * std::numbers::pi)) / (2 * std::log(rope.theta));
}

void blend_yarn(const RopeConfig& rope, int64_t head_dim, std::vector<double>* frequencies) {
  double low = yarn_dimension(rope, head_dim, rope.beta_fast);
  double high = yarn_dimension(rope, head_dim, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;  // a ramp of no width would divide by zero
  for (size_t i = 0; i < frequencies->size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    double& frequency = (*frequencies)[i];
    frequency = frequency / rope.factor * ramp + frequency * (1 - ramp);
  }
}

}  // namespace

std::vector<double> inverse_frequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<double> frequencies(head_dim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    if (rope.type == "linear") frequencies[i] /= rope.factor;
  }
  if (rope.type == "yarn") blend_yarn(rope, head_dim, &frequencies);
  return frequencies;
}

RopeTables make_rope_tables(const RopeConfig& rope, int64_t head_dim, int64_t num_positions, ThreadPool* pool) {
  const std::vector<double> frequencies = inverse_frequencies(rope, head_dim);
  const auto half = static_cast<int64_t>(frequencies.size());
  RopeTables tables;
  tables.num_positions = num_positions;
  tables.cos.resize(num_positions * half);
  tables.sin.resize(num_positions * half);
  constexpr int64_t kPerPart = 256;
  pool->run((num_positions + kPerPart - 1) / kPerPart, [&](int64_t part) {
    const int64_t end = std::min(num_positions, (part + 1) * kPerPart);
    for (int64_t p = part * kPerPart; p < end; ++p) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) * frequencies[i];
        tables.cos[p * half + i] = static_cast<float>(std::cos(angle) * rope.attention_factor);
        tables.sin[p * half + i] = static_cast<float>(std::sin(angle) * rope.attention_factor);
      }
    }
  });
  return tables;
}

}  // namespace quadrille::model
