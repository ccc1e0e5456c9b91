// SPDX-License-Identifier: Apache-2.0
// Random 4-bit experts with biases for the layer tests, and a scalar statement of what a Hopper GPU makes of one row:
// numerics/hopper_k32.h and the rules of the contract over canonical numbers, no layout, no table.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "kernels/api/registry.h"
#include "moe/layer.h"
#include "numerics/act_quant.h"
#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "numerics/hopper_k32.h"
#include "numerics/w4a8.h"
#include "prepare/prepare_w4.h"

namespace quadrille::moe {

// A row of e4m3 codes: one scale, or one for each 128 columns.
struct CodedRow {
  std::vector<uint8_t> codes;
  float scale = 1.0f;
  std::vector<float> block_scale;
};

inline CodedRow coded(const std::vector<float>& x) {
  CodedRow row;
  float absmax = 0.0f;
  for (const float v : x) absmax = numerics::absmax_step(absmax, v);
  row.scale = numerics::act_scale_of_absmax(absmax);
  for (const float v : x) row.codes.push_back(numerics::act_code(v, row.scale));
  return row;
}

class W4Experts {
 public:
  W4Experts(int64_t experts, int64_t n, int64_t k, int64_t group, kernels::Numerics wanted, unsigned seed)
      : experts_(experts), n_(n), k_(k), group_(group), groups_(group == 0 ? 1 : k / group), numerics_(wanted) {
    std::mt19937 random(seed);
    for (int64_t e = 0; e < experts; ++e) add_expert(random);
    for (int64_t e = 0; e < experts; ++e) {
      views_.push_back(prepared_[static_cast<size_t>(e)].view());
      bias_views_.push_back(bias_[static_cast<size_t>(e)].data());
    }
  }
  W4Experts(const W4Experts&) = delete;  // views point into it
  W4Experts& operator=(const W4Experts&) = delete;

  Linear view(bool with_bias) const {
    return W4Linear{experts_, n_, k_, group_, views_.data(), with_bias ? bias_views_.data() : nullptr};
  }

  // One row of expert e, with its bias where wanted.
  std::vector<float> hopper_row(int64_t e, const CodedRow& row, bool with_bias) const {
    std::vector<float> out;
    for (int64_t n = 0; n < n_; ++n) {
      const float y = numerics_ == kernels::Numerics::kVllm ? vllm_output(e, n, row) : exact_output(e, n, row);
      const float bias = bias_[static_cast<size_t>(e)][static_cast<size_t>(n)];
      out.push_back(with_bias ? numerics::canonical(y + bias) : y);
    }
    return out;
  }

 private:
  void add_expert(std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<int8_t> codes;
    for (int64_t i = 0; i < n_ * k_; ++i) codes.push_back(static_cast<int8_t>(static_cast<int>(random() % 16) - 8));
    std::vector<uint16_t> scales;
    const float unit = 0.2f / std::sqrt(static_cast<float>(k_));
    for (int64_t i = 0; i < n_ * groups_; ++i) {
      scales.push_back(numerics::bf16_from_f32(std::exp(0.5f * normal(random)) * unit));
    }
    std::vector<float> bias;
    for (int64_t i = 0; i < n_; ++i) bias.push_back(normal(random));
    prepare::CanonicalW4 matrix;
    matrix.n = n_;
    matrix.k = k_;
    matrix.group_size = group_;
    matrix.codes = codes.data();
    matrix.scales = scales.data();
    auto one = prepare::prepare_w4(matrix, numerics_);
    if (!one) throw std::runtime_error(one.error().message);
    prepared_.push_back(std::move(*one));
    q_.push_back(std::move(codes));
    scales_.push_back(std::move(scales));
    bias_.push_back(std::move(bias));
  }

  int code(int64_t e, int64_t n, int64_t k) const {
    return q_[static_cast<size_t>(e)][static_cast<size_t>(n * k_ + k)];
  }
  float scale(int64_t e, int64_t n, int64_t k) const {
    const int64_t group = group_ == 0 ? 0 : k / group_;
    return numerics::bf16_to_f32(scales_[static_cast<size_t>(e)][static_cast<size_t>(n * groups_ + group)]);
  }

  template <typename WeightByte>
  float step(const CodedRow& row, int64_t k0, float acc, const WeightByte& weight) const {
    uint8_t a[32] = {}, w[32] = {};
    for (int64_t i = 0; i < 32 && k0 + i < k_; ++i) {
      a[i] = row.codes[static_cast<size_t>(k0 + i)];
      w[i] = weight(k0 + i);
    }
    return numerics::hopper_k32(a, w, acc);
  }

  float exact_output(int64_t e, int64_t n, const CodedRow& row) const {
    const int64_t piece = group_ == 0 ? 128 : group_;
    const bool block = !row.block_scale.empty();
    float total = 0.0f;
    for (int64_t first = 0; first < k_; first += piece) {
      float acc = 0.0f;
      for (int64_t k0 = first; k0 < first + piece && k0 < k_; k0 += 32) {
        acc = step(row, k0, acc, [&](int64_t k) { return numerics::exact_weight_code(code(e, n, k)); });
      }
      if (block) acc = row.block_scale[static_cast<size_t>(first / 128)] * acc;
      total = std::fmaf(scale(e, n, first), acc, total);
    }
    return numerics::canonical(total * (block ? 512.0f : row.scale * 512.0f));
  }

  float vllm_output(int64_t e, int64_t n, const CodedRow& row) const {
    float absmax = 0.0f;
    for (int64_t k = 0; k < k_; k += 8) absmax = numerics::absmax_step(absmax, scale(e, n, k));
    const float channel = numerics::channel_scale_of_absmax(absmax);
    float acc = 0.0f;
    for (int64_t k0 = 0; k0 < k_; k0 += 32) {
      acc = step(row, k0, acc, [&](int64_t k) {
        const uint8_t s8 = numerics::group_scale8_code(numerics::group_scale_code(scale(e, n, k), channel));
        return numerics::vllm_weight_code(s8, code(e, n, k));
      });
    }
    return numerics::canonical(numerics::channel_scale8(channel) * (row.scale * acc));
  }

  int64_t experts_, n_, k_, group_, groups_;
  kernels::Numerics numerics_;
  std::vector<std::vector<int8_t>> q_;
  std::vector<std::vector<uint16_t>> scales_;
  std::vector<std::vector<float>> bias_;
  std::vector<prepare::PreparedW4> prepared_;
  std::vector<kernels::W4Matrix> views_;
  std::vector<const float*> bias_views_;
};

// Both matrices of the experts of one layer.
struct ExpertPair {
  int64_t hidden, width;
  kernels::ActivationRule rule;
  kernels::Numerics numerics;
  bool bias;
  W4Experts gate_up, down;

  ExpertPair(int64_t experts, int64_t hidden_size, int64_t expert_width, int64_t group,
             const kernels::ActivationRule& activation, kernels::Numerics wanted, bool with_bias, unsigned seed)
      : hidden(hidden_size),
        width(expert_width),
        rule(activation),
        numerics(wanted),
        bias(with_bias),
        gate_up(experts, (activation.gated() ? 2 : 1) * expert_width, hidden_size, group, wanted, seed),
        down(experts, hidden_size, expert_width, group, wanted, seed + 1) {}

  GatedMlp view() const { return {hidden, width, rule, gate_up.view(bias), down.view(bias)}; }

  // One row of GEMM2 as a GPU gives it: rounded to bf16.
  std::vector<float> hopper_row(int64_t e, const CodedRow& x) const {
    const std::vector<float> both = gate_up.hopper_row(e, x, bias);
    std::vector<float> h;
    for (int64_t i = 0; i < width; ++i) {
      const float gate = both[static_cast<size_t>(i)];
      const float up = rule.gated() ? both[static_cast<size_t>(width + i)] : 0.0f;
      h.push_back(numerics == kernels::Numerics::kExact ? quadrille::numerics::activation_exact(rule, gate, up)
                                                        : quadrille::numerics::activation_vllm(rule, gate, up));
    }
    std::vector<float> out = down.hopper_row(e, coded(h), bias);
    for (float& y : out) y = quadrille::numerics::round_to_bf16(y);
    return out;
  }
};

// Clamped where it bites: gate and up of these experts are near 1.
inline std::vector<kernels::ActivationRule> every_activation() {
  return {{},
          {.kind = kernels::Activation::kClampedSwiglu, .alpha = 1.702f, .limit = 0.75f, .up_offset = 1.0f},
          {.kind = kernels::Activation::kGeluTanh},
          {.kind = kernels::Activation::kRelu2}};
}

}  // namespace quadrille::moe
