// SPDX-License-Identifier: Apache-2.0
// Reductions outside the GEMMs (docs/numerics.md section 1): 32 lanes, lane l adds elements l, l + 32, ... ascending
// from +0, then a tree with distances 16, 8, 4, 2, 1: lane[l] = lane[l] + lane[l + distance].
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bf16.h"

namespace quadrille::numerics {

inline constexpr int kSumLanes = 32;

// The tree over lane[32]; destroys the lanes.
QD_HD constexpr float lane_tree(float* lane) {
  for (int distance = kSumLanes / 2; distance > 0; distance /= 2) {
    for (int l = 0; l < distance; ++l) lane[l] = lane[l] + lane[l + distance];
  }
  return lane[0];
}

// Sum of x[count]. An element that is absent (count no multiple of 32) adds nothing.
QD_HD constexpr float lane_sum(const float* x, int64_t count) {
  float lane[kSumLanes] = {};
  for (int64_t i = 0; i < count; ++i) lane[i % kSumLanes] = lane[i % kSumLanes] + x[i];
  return lane_tree(lane);
}

// Dot product of fp32 x[count] and bf16 w[count]: each lane is an fma chain fmaf(x, w, lane).
QD_HD float lane_dot_bf16(const float* x, const uint16_t* w, int64_t count) {
  float lane[kSumLanes] = {};
  for (int64_t i = 0; i < count; ++i) {
    lane[i % kSumLanes] = __builtin_fmaf(x[i], bf16_to_f32(w[i]), lane[i % kSumLanes]);
  }
  return lane_tree(lane);
}

// Sum of squares of x[count]: each lane is an fma chain fmaf(x, x, lane).
QD_HD float lane_sum_squares(const float* x, int64_t count) {
  float lane[kSumLanes] = {};
  for (int64_t i = 0; i < count; ++i) lane[i % kSumLanes] = __builtin_fmaf(x[i], x[i], lane[i % kSumLanes]);
  return lane_tree(lane);
}

}  // namespace quadrille::numerics
