// SPDX-License-Identifier: Apache-2.0
// Random experts as a checkpoint has them, 4-bit or bf16, and what a tensor-parallel rank holds of them: for the tests
// of the layer over ranks.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/check.h"
#include "moe/layer.h"
#include "numerics/bf16.h"
#include "prepare/prepare_bf16.h"
#include "prepare/prepare_w4.h"
#include "prepare/shard.h"

namespace quadrille::moe {

using kernels::Numerics;
using layout::KShard;
using layout::Range;

constexpr int64_t kHidden = 64;

// One matrix as a checkpoint has it, 4-bit or bf16.
struct Canonical {
  int64_t n, k, group;
  bool quantised;
  std::vector<int8_t> codes;
  std::vector<uint16_t> scales, dense;

  Canonical(std::mt19937& random, int64_t rows, int64_t columns, int64_t group_size, bool w4)
      : n(rows), k(columns), group(group_size), quantised(w4) {
    std::normal_distribution<float> normal;
    const float unit = 1.0f / std::sqrt(static_cast<float>(k));
    for (int64_t i = 0; i < n * k; ++i) {
      codes.push_back(static_cast<int8_t>(static_cast<int>(random() % 16) - 8));
      dense.push_back(numerics::bf16_from_f32(normal(random) * unit));
    }
    const int64_t groups = group == 0 ? 1 : k / group;
    for (int64_t i = 0; i < n * groups; ++i) {
      scales.push_back(numerics::bf16_from_f32(std::exp(0.5f * normal(random)) * unit * 0.3f));
    }
  }
  prepare::CanonicalW4 w4() const {
    prepare::CanonicalW4 m;
    m.n = n;
    m.k = k;
    m.group_size = group;
    m.codes = codes.data();
    m.scales = scales.data();
    return m;
  }
  prepare::CanonicalDense bf16() const { return {n, k, prepare::DenseType::kBf16, dense.data()}; }
};

template <typename T>
T value_of(Result<T> result) {
  QD_CHECK(result.ok(), result.ok() ? "" : result.error().message);
  return std::move(*result);
}

// Prepared matrices of the experts of one projection.
struct Store {
  int64_t n = 0, k = 0, group = 0;
  std::vector<prepare::PreparedW4> w4;
  std::vector<prepare::PreparedBf16> bf16;
  std::vector<kernels::W4Matrix> w4_views;
  std::vector<const uint16_t*> bf16_views;
  std::vector<std::vector<float>> bias;
  std::vector<const float*> bias_views;

  Linear view() {
    w4_views.clear();
    bf16_views.clear();
    bias_views.clear();
    for (const auto& m : w4) w4_views.push_back(m.view());
    for (const auto& m : bf16) bf16_views.push_back(m.view());
    for (const auto& b : bias) bias_views.push_back(b.data());
    const float* const* biases = bias.empty() ? nullptr : bias_views.data();
    if (w4.empty()) return Bf16Linear{static_cast<int64_t>(bf16.size()), n, k, bf16_views.data(), biases};
    return W4Linear{static_cast<int64_t>(w4.size()), n, k, group, w4_views.data(), biases};
  }
};

// Gate, up and down of some experts, whole and cut.
struct Experts {
  int64_t width, group;
  Numerics numerics;
  bool quantised;
  std::vector<Canonical> gate, up, down;
  std::vector<std::vector<float>> bias;  // of down

  Experts(int64_t count, int64_t expert_width, int64_t group_size, Numerics wanted, bool w4, unsigned seed)
      : width(expert_width), group(group_size), numerics(wanted), quantised(w4) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (int64_t e = 0; e < count; ++e) {
      gate.emplace_back(random, width, kHidden, group > kHidden ? kHidden : group, w4);
      up.emplace_back(random, width, kHidden, group > kHidden ? kHidden : group, w4);
      down.emplace_back(random, kHidden, width, group, w4);
      std::vector<float>& one = bias.emplace_back();
      for (int64_t i = 0; i < kHidden; ++i) one.push_back(normal(random));
    }
  }

  KShard shard(Range columns) const { return layout::k_shard({width, quantised, group}, columns); }

  struct Prepared {
    Store gate_up, down;
    int64_t width = 0, offset = 0;
    GatedMlp view() {
      GatedMlp mlp{kHidden, width, {}, gate_up.view(), down.view()};
      mlp.down_offset = offset;
      mlp.down_k = down.k;
      return mlp;
    }
  };
  // What a rank with `columns` holds.
  Prepared prepared(Range columns) const {
    Prepared out;
    const KShard cut = shard(columns);
    out.width = columns.size();
    out.offset = cut.k_offset();
    out.gate_up.n = 2 * columns.size();
    out.gate_up.k = kHidden;
    out.gate_up.group = group > kHidden ? kHidden : group;
    out.down.n = kHidden;
    out.down.k = cut.k();
    out.down.group = group;
    out.down.bias = bias;
    for (size_t e = 0; e < gate.size(); ++e) {
      if (quantised) {
        const prepare::CanonicalW4 both[] = {prepare::column_parallel_shard(gate[e].w4(), columns),
                                             prepare::column_parallel_shard(up[e].w4(), columns)};
        out.gate_up.w4.push_back(value_of(prepare::prepare_w4(both, numerics, nullptr)));
        const auto part = value_of(prepare::row_parallel_shard(down[e].w4(), cut, prepare::ChannelScale::kWholeRow));
        out.down.w4.push_back(value_of(prepare::prepare_w4(part.view(), numerics)));
      } else {
        const prepare::CanonicalDense both[] = {prepare::column_parallel_shard(gate[e].bf16(), columns),
                                                prepare::column_parallel_shard(up[e].bf16(), columns)};
        out.gate_up.bf16.push_back(value_of(prepare::prepare_bf16(both, nullptr)));
        const auto part = prepare::row_parallel_shard(down[e].bf16(), cut);
        out.down.bf16.push_back(value_of(prepare::prepare_bf16(part.view())));
      }
    }
    return out;
  }
};

}  // namespace quadrille::moe
