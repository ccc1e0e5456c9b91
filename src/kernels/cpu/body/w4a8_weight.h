// SPDX-License-Identifier: Apache-2.0
// The operands of the W4A8 product: the k axis in steps, pieces and groups, decoded weights and scales, and the result
// of a row (docs/numerics.md section 3). Weights of `exact` count in q, group scales carry the 2^-9.
#pragma once

#include "kernels/cpu/body/gemm_tile.h"
#include "numerics/w4a8.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kStep = 32;

// Index inside a k32 step: even positions first, then odd ones.
QD_HD constexpr int packed_position(int i) {
  return (i & 1) * 16 + i / 2;
}

// The k axis of a product: steps of 32 that share an accumulator in `exact`, and the row of scales that they use.
struct KAxis {
  int64_t kp = 0;
  int64_t piece = 0;  // positions that share an accumulator
  int64_t num_pieces = 0;
  int64_t num_groups = 0;  // rows of scales a block

  QD_HD int64_t steps(int64_t index) const { return smaller(piece, kp - index * piece) / kStep; }
  QD_HD int64_t group(int64_t index) const { return num_groups == 1 ? 0 : index; }
};

QD_HD KAxis k_axis(const W4A8Gemm& gemm) {
  KAxis axis;
  axis.kp = round_up(gemm.k, kStep);
  axis.piece = gemm.group_size == 0 ? 128 : gemm.group_size;
  axis.num_pieces = (gemm.k + axis.piece - 1) / axis.piece;
  axis.num_groups = gemm.group_size == 0 ? 1 : axis.num_pieces;
  return axis;
}

// Whether each 128 columns of a row have their own activation scale; the row has none then, and y = final * 512.
QD_HD bool block_scaled(const W4A8Gemm& gemm) {
  return gemm.block_scale.data != nullptr;
}

template <class S>
QD_HD int64_t scale_offset(const KAxis& axis, int64_t vector, int64_t group) {
  return (Rows<S>::block(vector) * axis.num_groups + group) * kBlockRows + Rows<S>::lane(vector);
}

// s_g of one vector of rows in one group.
template <class S>
QD_HD typename S::F load_group_scale(const W4Matrix& weights, const KAxis& axis, int64_t vector, int64_t group) {
  return S::load_bf16(weights.scale_bf16 + scale_offset<S>(axis, vector, group));
}

// Scales of one vector of rows in one group: `exact` s_g * 2^-9 (weights count in q); `vllm` the e4m3 group scale.
template <class S, bool kVllm>
QD_HD typename S::F load_scale(const W4Matrix& weights, const KAxis& axis, int64_t vector, int64_t group) {
  if constexpr (kVllm) return S::load_e4m3(weights.scale_e4m3 + scale_offset<S>(axis, vector, group));
  return S::mul(load_group_scale<S>(weights, axis, vector, group), S::set(numerics::kExactUnit));
}

// The weight operand of nibble J: q, or the value of E4(s8 * q).
template <class S, bool kVllm, int J>
QD_HD typename S::F weight(typename S::I words, typename S::F scale) {
  const typename S::F q = S::template nibble<J>(words);
  if constexpr (kVllm) return S::round_e4m3(S::mul(scale, q));
  return q;
}

template <class S>
QD_HD const uint32_t* words_of(const W4Matrix& weights, const KAxis& axis, int64_t vector) {
  return weights.codes + Rows<S>::block(vector) * (axis.kp / 8) * kBlockRows + Rows<S>::lane(vector);
}

// y of `total` and the scales of the row and of the channel.
template <class S, bool kVllm>
QD_HD typename S::F result(const W4Matrix& weights, int64_t row, float act_scale, typename S::F total) {
  if constexpr (kVllm) return S::mul(S::load(weights.channel_scale + row), S::mul(S::set(act_scale), total));
  return S::mul(total, S::set(act_scale * 512.0f));
}

// Stores y of one vector of rows; fp32 with its NaN canonical.
template <class S>
QD_HD void store_result(const W4A8Gemm& gemm, int64_t expert, int64_t slot, int64_t row, typename S::F y) {
  const float* bias = gemm.bias != nullptr ? gemm.bias[expert] : nullptr;
  store_rows<S>(gemm.out + slot * gemm.n, bias, gemm.n, row, y, [](typename S::F v) { return S::number_or_nan(v, v); });
}

}  // namespace
}  // namespace quadrille::kernels::cpu
