// SPDX-License-Identifier: Apache-2.0
// One step of a reduction over ranks (docs/numerics.md section 6): ranks are taken in rising order, so threads,
// sockets, MPI and device kernels give the same bits. Called by src/parallel and by the reduction kernels.
#pragma once

#include "numerics/bits.h"

namespace quadrille::numerics {

// sum: that of the ranks below (of rank 0: its value). canonical() once at the end makes NaN the same everywhere.
QD_HD constexpr float add_rank(float sum, float value) {
  return sum + value;
}

// The larger number; +0 over -0. NaN is ignored as absmax does (act_quant.h), so the scale of a row does not depend on
// who holds its NaN; NaN on all ranks stays NaN.
QD_HD constexpr float max_rank(float most, float value) {
  if (is_nan(most)) return value;
  if (is_nan(value)) return most;
  if (most == value) return float_of(bits_of(most) & bits_of(value));
  return most > value ? most : value;
}

}  // namespace quadrille::numerics
