// SPDX-License-Identifier: Apache-2.0
// The bf16 matrix of the CPU tables: [ceil(n/16)][k][16], 16 rows in the lanes of a vector, zero rows behind n.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "layout/tag.h"
#include "layout/w4_lanes16.h"

namespace quadrille::layout {

inline constexpr LayoutTag kBf16Lanes16Tag{"bf16_lanes16", 1};

struct Bf16Lanes16 {
  int64_t n;
  int64_t k;

  QD_HD constexpr int64_t blocks() const { return ceil_div(n, kLanes); }
  QD_HD constexpr int64_t size() const { return blocks() * k * kLanes; }
  QD_HD constexpr int64_t offset(int64_t row, int64_t column) const {
    return (row / kLanes * k + column) * kLanes + row % kLanes;
  }
  // The reverse. A row of n or more is padding.
  QD_HD constexpr RowColumn at(int64_t index) const {
    return {index / kLanes / k * kLanes + index % kLanes, index / kLanes % k};
  }
};

}  // namespace quadrille::layout
