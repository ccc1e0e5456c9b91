// SPDX-License-Identifier: Apache-2.0
// fp32 selection scores as unsigned integers of the same order, so that a warp finds its best with one integer
// reduction. NaN counts as -infinity and both zeros are equal, as in moe::route_tokens; 0 is below every score.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/bits.h"

namespace quadrille::kernels::cuda {

inline constexpr uint32_t kNoKey = 0;
inline constexpr uint32_t kLowestKey = 0x007fffffu;  // of -infinity
inline constexpr uint32_t kAboveAllKeys = 0xffffffffu;

QD_HD constexpr uint32_t order_key(float score) {
  if (numerics::is_nan(score)) return kLowestKey;
  const uint32_t bits = numerics::bits_of(score);
  if (bits == 0x80000000u) return 0x80000000u;
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

QD_HD constexpr float score_of_key(uint32_t key) {
  return numerics::float_of((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// A choice in descending order of keys, ties to the lower index: b comes after a.
struct Ranked {
  uint32_t key;
  int32_t index;
};
QD_HD constexpr bool comes_after(Ranked b, Ranked a) {
  return b.key < a.key || (b.key == a.key && b.index > a.index);
}

}  // namespace quadrille::kernels::cuda
