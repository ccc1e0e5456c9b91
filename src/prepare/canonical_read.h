// SPDX-License-Identifier: Apache-2.0
// Reading one word of eight codes, or one scale, of a canonical matrix, and the errors that name the row. Shared by the
// preparations for the CPU and for Hopper.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "layout/w4_canonical.h"
#include "numerics/int4.h"
#include "prepare/parts.h"
#include "prepare/prepare_w4.h"

namespace quadrille::prepare {

// Eight codes of one row as a word of two's complement nibbles, or the column of a code outside -8..7.
struct CanonicalWord {
  uint32_t value = 0;
  int64_t bad_column = -1;
};

inline CanonicalWord load_word(const CanonicalW4& m, int64_t row, int64_t word) {
  if (m.packed != nullptr) {
    const layout::W4Canonical map{m.n, m.k};
    uint32_t packed = 0;
    std::memcpy(&packed, static_cast<const std::byte*>(m.packed) + (row * map.words_per_row() + word) * 4, 4);
    return {m.packed_source == kernels::W4Source::kInt4 ? packed : numerics::flip_uint4b8_word(packed), -1};
  }
  int8_t q[8];
  std::memcpy(q, static_cast<const std::byte*>(m.codes) + row * m.k + word * 8, 8);
  for (int j = 0; j < 8; ++j) {
    if (q[j] < -8 || q[j] > 7) return {0, word * 8 + j};
  }
  return {numerics::pack_int4(q), -1};
}

inline uint16_t load_scale(const CanonicalW4& m, int64_t index) {
  uint16_t scale = 0;
  std::memcpy(&scale, static_cast<const std::byte*>(m.scales) + index * 2, 2);
  return scale;
}

inline bool is_finite_bf16(uint16_t scale) {
  return (scale & 0x7f80) != 0x7f80;
}

// Where a failure lies: the matrix is named only where there are several.
inline std::string row_name(size_t num_parts, const PartRow& place) {
  return num_parts == 1 ? fmt::format("row {}", place.row) : fmt::format("matrix {}, row {}", place.part, place.row);
}

inline Error bad_code(size_t num_parts, const PartRow& place, int64_t column) {
  return make_error(ErrorCode::kInvalidData, "{}, column {}: a 4-bit code must lie in -8..7",
                    row_name(num_parts, place), column);
}

inline Error bad_scale(size_t num_parts, const PartRow& place, int64_t group, uint16_t scale) {
  return make_error(ErrorCode::kInvalidData, "{}, group {}: the scale is {} (bf16 0x{:04X}), expected a finite one",
                    row_name(num_parts, place), group, (scale & 0x7f) == 0 ? "infinite" : "NaN", scale);
}

// The absmax that makes the channel scale of a row whose own scales reach `absmax`.
inline Result<float> channel_absmax(const CanonicalW4& m, size_t num_parts, const PartRow& place, float absmax) {
  if (m.row_absmax == nullptr) return absmax;
  const float whole = m.row_absmax[place.row];
  if (whole >= absmax && std::isfinite(whole)) return whole;
  return make_error(ErrorCode::kInvalidData,
                    "{}: row_absmax is {}, expected a finite number not below {}, the largest scale of the row",
                    row_name(num_parts, place), whole, absmax);
}

}  // namespace quadrille::prepare
