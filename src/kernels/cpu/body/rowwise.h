// SPDX-License-Identifier: Apache-2.0
// The row-wise steps over vectors: the operations of the scalar functions in numerics/, in the same order; what is left
// of a row after the last whole vector goes through those functions themselves.
#pragma once

#include "kernels/api/problems.h"
#include "kernels/cpu/body/exp.h"
#include "numerics/act_quant.h"
#include "numerics/activation.h"
#include "numerics/elementwise.h"
#include "numerics/lane_sum.h"

namespace quadrille::kernels::cpu {
namespace {

// A rounding point: bf16 kept in fp32, or the value with its NaN made canonical.
template <class S, bool kToBf16>
QD_HD typename S::F round_lanes(typename S::F x) {
  if constexpr (kToBf16) return S::round_bf16(x);
  return S::number_or_nan(x, x);
}

// The 32 running lanes of section 1 of the contract; `term` and `tail` add vector and scalar elements to a lane.
template <class S, typename Term, typename Tail>
QD_HD float sum32(int64_t count, const Term& term, const Tail& tail) {
  constexpr int kVectors = 32 / S::kLanes;
  typename S::F lanes[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) lanes[v] = S::zero();
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) lanes[v] = term(i + v * S::kLanes, lanes[v]);
  }
  if (i < count) {
    alignas(64) float scalar[32];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) S::store(scalar + v * S::kLanes, lanes[v]);
    for (int64_t l = 0; i + l < count; ++l) scalar[l] = tail(i + l, scalar[l]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) lanes[v] = S::load(scalar + v * S::kLanes);
  }
  return S::tree32(lanes);
}

template <class S>
void quantize_row(const float* x, int64_t k, uint8_t* act, float* act_scale) {
  using F = typename S::F;
  F top = S::zero();
  int64_t i = 0;
  for (; i + S::kLanes <= k; i += S::kLanes) top = S::max(S::abs(S::load(x + i)), top);
  alignas(64) float tops[S::kLanes];
  S::store(tops, top);
  float absmax = 0.0f;
  for (int l = 0; l < S::kLanes; ++l) absmax = numerics::absmax_step(absmax, tops[l]);
  for (; i < k; ++i) absmax = numerics::absmax_step(absmax, x[i]);
  const float scale = numerics::act_scale_of_absmax(absmax);
  *act_scale = scale;
  for (i = 0; i + S::kLanes <= k; i += S::kLanes) S::store_e4m3(act + i, S::div(S::load(x + i), S::set(scale)));
  for (; i < k; ++i) act[i] = numerics::act_code(x[i], scale);
}

template <class S>
void quantize_rows_share(const QuantizeRows& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    quantize_row<S>(p.x + row * p.k, p.k, p.act + row * p.k, p.act_scale + row);
  }
}

enum class GatedForm { kF32, kExactBf16, kVllmBf16 };

template <GatedForm kForm>
QD_HD float activate(const numerics::ActivationRule& rule, float gate, float up) {
  if constexpr (kForm == GatedForm::kF32) return numerics::activation_f32(rule, gate, up);
  if constexpr (kForm == GatedForm::kExactBf16) return numerics::activation_exact(rule, gate, up);
  if constexpr (kForm == GatedForm::kVllmBf16) return numerics::activation_vllm(rule, gate, up);
}

template <class S, GatedForm kForm>
void silu_row(const float* gate, const float* up, int64_t width, float* out) {
  using F = typename S::F;
  int64_t i = 0;
  for (; i + S::kLanes <= width; i += S::kLanes) {
    const F g = S::load(gate + i);
    const F u = S::load(up + i);
    if constexpr (kForm == GatedForm::kVllmBf16) {
      const F act = S::round_bf16(silu_lanes<S>(S::round_bf16(g)));
      S::store(out + i, S::round_bf16(S::mul(act, S::round_bf16(u))));
    } else {
      S::store(out + i, round_lanes<S, kForm == GatedForm::kExactBf16>(S::mul(silu_lanes<S>(g), u)));
    }
  }
  for (; i < width; ++i) out[i] = activate<kForm>(numerics::ActivationRule{}, gate[i], up[i]);
}

// The other kinds run the shared functions as they are; no model of the CPU path needs them fast.
template <GatedForm kForm>
void activated_row(const numerics::ActivationRule& rule, const float* gate, const float* up, int64_t width,
                   float* out) {
  for (int64_t i = 0; i < width; ++i) out[i] = activate<kForm>(rule, gate[i], up[i]);
}

template <class S, GatedForm kForm>
void gated_rows(const GatedActivation& p, int64_t begin, int64_t end) {
  const bool gated = p.activation.gated();
  const int64_t columns = gated ? 2 * p.width : p.width;
  for (int64_t row = begin; row < end; ++row) {
    const float* gate = p.gate_up + row * columns;
    const float* up = gated ? gate + p.width : gate;
    float* out = p.out + row * p.width;
    if (p.activation.kind == Activation::kSilu) {
      silu_row<S, kForm>(gate, up, p.width, out);
    } else {
      activated_row<kForm>(p.activation, gate, up, p.width, out);
    }
  }
}

template <class S>
void gated_activation_share(const GatedActivation& p, int64_t begin, int64_t end) {
  if (p.rounding == Rounding::kF32) return gated_rows<S, GatedForm::kF32>(p, begin, end);
  if (p.numerics == Numerics::kExact) return gated_rows<S, GatedForm::kExactBf16>(p, begin, end);
  gated_rows<S, GatedForm::kVllmBf16>(p, begin, end);
}

template <class S, bool kToBf16>
void rms_norm_row(const float* x, const uint16_t* weight, int64_t width, float eps, float* out) {
  using F = typename S::F;
  const float sum = sum32<S>(
      width,
      [x](int64_t i, F lane) {
        const F v = S::load(x + i);
        return S::fma(v, v, lane);
      },
      [x](int64_t i, float lane) { return __builtin_fmaf(x[i], x[i], lane); });
  const float r = numerics::rms_scale(sum, width, eps);
  int64_t i = 0;
  for (; i + S::kLanes <= width; i += S::kLanes) {
    F v = S::mul(S::load(x + i), S::set(r));
    if constexpr (kToBf16) v = S::round_bf16(v);
    S::store(out + i, round_lanes<S, kToBf16>(S::mul(v, S::load_bf16(weight + i))));
  }
  for (; i < width; ++i) out[i] = numerics::rms_norm_value(x[i], r, numerics::bf16_to_f32(weight[i]), kToBf16);
}

template <class S>
void rms_norm_share(const RmsNorm& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* x = p.x + row * p.row_stride;
    float* out = p.out + row * p.row_stride;
    if (p.rounding == Rounding::kBf16) {
      rms_norm_row<S, true>(x, p.weight, p.width, p.eps, out);
    } else {
      rms_norm_row<S, false>(x, p.weight, p.width, p.eps, out);
    }
  }
}

template <class S, bool kToBf16>
void rope_head(const float* cos, const float* sin, int64_t half, float* x) {
  using F = typename S::F;
  int64_t i = 0;
  for (; i + S::kLanes <= half; i += S::kLanes) {
    const F a = S::load(x + i);
    const F b = S::load(x + half + i);
    const F c = S::load(cos + i);
    const F s = S::load(sin + i);
    S::store(x + i, round_lanes<S, kToBf16>(S::sub(S::mul(a, c), S::mul(b, s))));
    S::store(x + half + i, round_lanes<S, kToBf16>(S::add(S::mul(b, c), S::mul(a, s))));
  }
  for (; i < half; ++i) {
    const float a = x[i];
    const float b = x[half + i];
    x[i] = numerics::rope_first(a, b, cos[i], sin[i], kToBf16);
    x[half + i] = numerics::rope_second(a, b, cos[i], sin[i], kToBf16);
  }
}

template <class S>
void rope_share(const Rope& p, int64_t begin, int64_t end) {
  const int64_t half = p.rotary_dim / 2;
  for (int64_t token = begin; token < end; ++token) {
    const float* cos = p.cos + p.position[token] * half;
    const float* sin = p.sin + p.position[token] * half;
    for (int64_t head = 0; head < p.num_heads; ++head) {
      float* x = p.x + token * p.token_stride + head * p.head_dim;
      if (p.rounding == Rounding::kBf16) {
        rope_head<S, true>(cos, sin, half, x);
      } else {
        rope_head<S, false>(cos, sin, half, x);
      }
    }
  }
}

template <class S>
void router_logits_share(const RouterLogits& p, int64_t begin, int64_t end) {
  using F = typename S::F;
  for (int64_t i = begin; i < end; ++i) {
    const float* x = p.x + i / p.num_experts * p.k;
    const uint16_t* w = p.weight + i % p.num_experts * p.k;
    const float dot = sum32<S>(
        p.k, [x, w](int64_t k, F lane) { return S::fma(S::load(x + k), S::load_bf16(w + k), lane); },
        [x, w](int64_t k, float lane) { return __builtin_fmaf(x[k], numerics::bf16_to_f32(w[k]), lane); });
    p.logits[i] = numerics::canonical(dot);
  }
}

template <class S, bool kToBf16>
void combine_token(const Combine& p, int64_t token) {
  using F = typename S::F;
  const int32_t* slot = p.slot + token * p.top_k;
  const float* weight = p.weight + token * p.top_k;
  const float gate = p.shared_gate == nullptr ? 1.0f : p.shared_gate[token];
  const float* shared = p.shared == nullptr ? nullptr : p.shared + token * p.width;
  float* out = p.out + token * p.width;
  int64_t i = 0;
  for (; i + S::kLanes <= p.width; i += S::kLanes) {
    F acc = S::zero();
    for (int64_t j = 0; j < p.top_k; ++j) {
      if (slot[j] >= 0) acc = S::fma(S::set(weight[j]), S::load(p.rows + slot[j] * p.width + i), acc);
    }
    if (shared != nullptr) acc = S::fma(S::set(gate), S::load(shared + i), acc);
    S::store(out + i, round_lanes<S, kToBf16>(acc));
  }
  for (; i < p.width; ++i) {
    float acc = 0.0f;
    for (int64_t j = 0; j < p.top_k; ++j) {
      if (slot[j] >= 0) acc = numerics::combine_step(weight[j], p.rows[slot[j] * p.width + i], acc);
    }
    if (shared != nullptr) acc = numerics::combine_step(gate, shared[i], acc);
    out[i] = numerics::round_output(acc, kToBf16);
  }
}

template <class S>
void combine_share(const Combine& p, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    if (p.rounding == Rounding::kBf16) {
      combine_token<S, true>(p, token);
    } else {
      combine_token<S, false>(p, token);
    }
  }
}

template <class S, bool kToBf16>
void add_residual_range(float* x, const float* y, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + S::kLanes <= end; i += S::kLanes) {
    S::store(x + i, round_lanes<S, kToBf16>(S::add(S::load(x + i), S::load(y + i))));
  }
  for (; i < end; ++i) x[i] = numerics::round_output(x[i] + y[i], kToBf16);
}

template <class S>
void add_residual_share(const AddResidual& p, int64_t begin, int64_t end) {
  if (p.rounding == Rounding::kBf16) {
    add_residual_range<S, true>(p.x, p.y, begin, end);
  } else {
    add_residual_range<S, false>(p.x, p.y, begin, end);
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
