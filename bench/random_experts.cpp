// SPDX-License-Identifier: Apache-2.0
#include "bench/random_experts.h"

#include <cmath>
#include <random>

#include "layout/w4_lanes16.h"
#include "numerics/act_quant.h"
#include "numerics/bf16.h"

namespace quadrille::bench {

using kernels::Numerics;

RandomExperts::RandomExperts(int64_t num_experts, int64_t n, int64_t k, int64_t group, uint64_t seed)
    : n_(n), k_(k), group_(group), groups_(layout::num_groups(k, group)) {
  const int64_t words = layout::W4Lanes16{n, k}.num_words();
  const int64_t scales = layout::ScaleLanes16{n, groups_}.size();
  std::mt19937_64 random(seed);
  codes_ = prepare::AlignedBuffer<uint32_t>(num_experts * words);
  for (int64_t i = 0; i < codes_.size(); ++i) codes_[i] = static_cast<uint32_t>(random() >> 16);
  scale_bf16_ = prepare::AlignedBuffer<uint16_t>(num_experts * scales);
  scale_e4m3_ = prepare::AlignedBuffer<uint8_t>(num_experts * scales);
  // So that the outputs are about as large as the inputs: a code's standard deviation is about 4.6.
  const float one = 1.0f / (4.6f * std::sqrt(static_cast<float>(k)));
  for (int64_t i = 0; i < scale_bf16_.size(); ++i) {
    const float spread = 0.5f + 0.5f * static_cast<float>(random() >> 40) * 0x1p-24f;
    scale_bf16_[i] = numerics::bf16_from_f32(2 * one * spread);
    scale_e4m3_[i] = numerics::e4m3_from_f32(56.0f * spread);  // the largest of a channel is 448 / 8
  }
  channel_scale_.assign(static_cast<size_t>((n + layout::kLanes - 1) / layout::kLanes * layout::kLanes), one / 28.0f);
  for (int64_t e = 0; e < num_experts; ++e) {
    matrices_.push_back({codes_.data() + e * words, scale_bf16_.data() + e * scales, scale_e4m3_.data() + e * scales,
                         channel_scale_.data()});
  }
}

int64_t RandomExperts::bytes_of_one(Numerics numerics) const {
  const int64_t codes = layout::W4Lanes16{n_, k_}.num_words() * 4;
  const int64_t scales = layout::ScaleLanes16{n_, groups_}.size();
  return numerics == Numerics::kExact ? codes + 2 * scales : codes + scales + 4 * n_;
}

std::vector<float> random_rows_bf16(int64_t rows, int64_t k, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(rows * k));
  for (float& value : values) value = numerics::round_to_bf16(normal(random));
  return values;
}

RandomRows::RandomRows(int64_t rows, int64_t k, uint64_t seed) : act(static_cast<size_t>(rows * k)) {
  const std::vector<float> values = random_rows_bf16(rows, k, seed);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = values.data() + r * k;
    float absmax = 0;
    for (int64_t i = 0; i < k; ++i) absmax = numerics::absmax_step(absmax, row[i]);
    act_scale.push_back(numerics::act_scale_of_absmax(absmax));
    for (int64_t i = 0; i < k; ++i) act[static_cast<size_t>(r * k + i)] = numerics::act_code(row[i], act_scale.back());
  }
}

}  // namespace quadrille::bench
