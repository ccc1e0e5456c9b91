// SPDX-License-Identifier: Apache-2.0
// A random matrix in all three spellings of a checkpoint.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "prepare/prepare_w4.h"

namespace quadrille::prepare::test {

struct RandomW4 {
  int64_t n, k, group_size, groups;
  std::vector<int8_t> q;         // [n, k]
  std::vector<uint32_t> packed;  // [n, k/8] uint4b8
  std::vector<uint32_t> int4;    // [n, k/8] two's complement
  std::vector<uint16_t> scales;  // [n, groups], both signs

  RandomW4(int64_t rows, int64_t columns, int64_t group, unsigned seed)
      : n(rows), k(columns), group_size(group), groups(layout::num_groups(columns, group)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.01f);
    packed.resize(static_cast<size_t>(n * k / 8));
    for (uint32_t& word : packed) word = static_cast<uint32_t>(random());
    for (const uint32_t word : packed) {
      int4.push_back(word ^ 0x88888888u);
      for (int j = 0; j < 8; ++j) q.push_back(static_cast<int8_t>(static_cast<int>(word >> (4 * j) & 15) - 8));
    }
    for (int64_t i = 0; i < n * groups; ++i) scales.push_back(numerics::bf16_from_f32(normal(random)));
  }

  CanonicalW4 view(kernels::W4Source source = kernels::W4Source::kUint4b8) const {
    CanonicalW4 m;
    m.n = n;
    m.k = k;
    m.group_size = group_size;
    m.scales = scales.data();
    if (source == kernels::W4Source::kInt8) {
      m.codes = q.data();
    } else {
      m.packed = source == kernels::W4Source::kInt4 ? int4.data() : packed.data();
      m.packed_source = source;
    }
    return m;
  }
};

}  // namespace quadrille::prepare::test
