// SPDX-License-Identifier: Apache-2.0
// numerics::exp_f32 and silu over the lanes of a vector: the same operations in the same order, so the same bits.
#pragma once

#include "core/hostdev.h"
#include "numerics/exp.h"

namespace quadrille::kernels::cpu {
namespace {

template <class S>
QD_HD typename S::F exp_lanes(typename S::F x) {
  using F = typename S::F;
  using I = typename S::I;
  const F v = S::min(S::set(numerics::kExpHigh), S::max(S::set(numerics::kExpLow), x));
  const F magic = S::set(numerics::kRoundMagic);
  const F t = S::fma(v, S::set(numerics::kLog2E), magic);
  const F n = S::sub(t, magic);
  F r = S::fma(n, S::set(-numerics::kLn2High), v);
  r = S::fma(n, S::set(-numerics::kLn2Low), r);
  F p = S::set(numerics::kExpC7);
  p = S::fma(p, r, S::set(numerics::kExpC6));
  p = S::fma(p, r, S::set(numerics::kExpC5));
  p = S::fma(p, r, S::set(numerics::kExpC4));
  p = S::fma(p, r, S::set(numerics::kExpC3));
  p = S::fma(p, r, S::set(numerics::kExpC2));
  p = S::fma(p, r, S::set(1.0f));
  p = S::fma(p, r, S::set(1.0f));
  const I whole = S::sub_i(S::as_int(t), S::as_int(magic));
  const I first = S::template shift_right_signed<1>(whole);
  const I bias = S::set_i(127);
  const F scale1 = S::as_float(S::template shift_left<23>(S::add_i(first, bias)));
  const F scale2 = S::as_float(S::template shift_left<23>(S::add_i(S::sub_i(whole, first), bias)));
  return S::number_or_nan(x, S::mul(S::mul(p, scale1), scale2));
}

template <class S>
QD_HD typename S::F silu_lanes(typename S::F x) {
  const typename S::F y = S::div(x, S::add(S::set(1.0f), exp_lanes<S>(S::negate(x))));
  return S::number_or_nan(y, y);
}

}  // namespace
}  // namespace quadrille::kernels::cpu
