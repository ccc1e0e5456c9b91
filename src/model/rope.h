// SPDX-License-Identifier: Apache-2.0
// The tables of cos and sin behind rotary embedding: computed in double, rounded to fp32 once, and kept in fp32 in both
// roundings. (transformers rounds them to bf16 in bf16 models; that only adds an error.)
#pragma once

#include <cstdint>
#include <vector>

#include "core/thread_pool.h"
#include "model/config.h"

namespace quadrille::model {

// inv_freq [head_dim / 2] in double: theta^(-2i/d), divided by the factor (linear), or blended by frequency (yarn: the
// ramp between the dimensions that turn beta_fast and beta_slow times over the original positions).
std::vector<double> inverse_frequencies(const RopeConfig& rope, int64_t head_dim);

struct RopeTables {
  int64_t num_positions = 0;
  std::vector<float> cos, sin;  // [num_positions, head_dim / 2], times the attention factor
};
RopeTables make_rope_tables(const RopeConfig& rope, int64_t head_dim, int64_t num_positions, ThreadPool* pool);

}  // namespace quadrille::model
