// SPDX-License-Identifier: Apache-2.0
// Cutting matrices: views for rows, copies for columns, whose first and last words are masked code by code.
#include "prepare/shard.h"

#include <cstring>

#include "core/check.h"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "prepare/canonical_read.h"

namespace quadrille::prepare {
namespace {

using kernels::W4Source;
using layout::KShard;
using layout::Range;

const std::byte* at(const void* base, int64_t offset) {
  return static_cast<const std::byte*>(base) + offset;
}

int64_t value_bytes(DenseType type) {
  return type == DenseType::kF32 ? 4 : 2;
}

int64_t groups_of(const CanonicalW4& m) {
  return layout::num_groups(m.k, m.group_size);
}

// Eight zero codes.
uint32_t zero_word(W4Source source) {
  return source == W4Source::kUint4b8 ? 0x88888888u : 0u;
}

// The nibbles of the word of unsharded columns column..column+7 that the rank holds.
uint32_t held_nibbles(const KShard& shard, int64_t column) {
  uint32_t mask = 0;
  for (int j = 0; j < 8; ++j) mask |= shard.holds(column + j) ? 0xfu << (4 * j) : 0u;
  return mask;
}

// Where a rank's W4 matrix stands in the unsharded one, with memory for either.
OwnedW4 allocate(int64_t n, int64_t k, const CanonicalW4& like) {
  OwnedW4 out{n, k, like.group_size, like.source(), {}, {}, {}, {}};
  if (like.packed != nullptr) {
    out.packed.assign(static_cast<size_t>(n * k / 8), zero_word(out.source));
  } else {
    out.codes.assign(static_cast<size_t>(n * k), 0);
  }
  out.scales.assign(static_cast<size_t>(n * layout::num_groups(k, like.group_size)), 0);
  return out;
}

void check_planned(const CanonicalW4& whole, const KShard& shard) {
  QD_CHECK(shard.format.is_w4 && shard.format.k == whole.k && shard.format.group_size == whole.group_size,
           "a shard is cut from the matrix that it was planned for");
  QD_CHECK(whole.k % 8 == 0 && shard.pad_begin % 8 == 0 && shard.pad_end % 8 == 0, "packed words are whole");
}

void copy_packed_row(const CanonicalW4& whole, const KShard& shard, int64_t row, uint32_t* out) {
  const auto* source = at(whole.packed, (row * whole.k + shard.pad_begin) / 2);
  std::memcpy(out, source, static_cast<size_t>(shard.k() / 2));
  const uint32_t zero = zero_word(whole.packed_source);
  for (int64_t w = 0; w < shard.k() / 8; ++w) {
    const int64_t column = shard.pad_begin + w * 8;
    if (column >= shard.k_begin && column + 8 <= shard.k_end) continue;
    const uint32_t mask = held_nibbles(shard, column);
    out[w] = (out[w] & mask) | (zero & ~mask);
  }
}

std::string place_text(size_t rank, int64_t row) {
  return fmt::format("shard {}, row {}", rank, row);
}

Error copies_differ(size_t rank, int64_t row, const char* what) {
  return make_error(ErrorCode::kInvalidData, "{}: the {} differ from another shard's copy of them",
                    place_text(rank, row), what);
}

Error not_zero(size_t rank, int64_t row, int64_t column, Range held) {
  return make_error(ErrorCode::kInvalidData,
                    "{}: the code of column {} is not zero, and the shard holds columns {}..{} of the whole matrix",
                    place_text(rank, row), column, held.begin, held.end - 1);
}

// The words of one row of a part into the whole row; outside of the held columns they must be zero.
Status merge_packed_row(const CanonicalW4& part, const KShard& shard, size_t rank, int64_t row, uint32_t* whole) {
  const uint32_t zero = zero_word(part.packed_source);
  for (int64_t w = 0; w < shard.k() / 8; ++w) {
    uint32_t word = 0;
    std::memcpy(&word, at(part.packed, (row * shard.k() + w * 8) / 2), 4);
    const int64_t column = shard.pad_begin + w * 8;
    const uint32_t mask = held_nibbles(shard, column);
    if (const uint32_t stray = (word ^ zero) & ~mask; stray != 0) {
      return not_zero(rank, row, column + __builtin_ctz(stray) / 4, {shard.k_begin, shard.k_end});
    }
    uint32_t& place = whole[column / 8];
    place = (place & ~mask) | (word & mask);
  }
  return {};
}

Status merge_code_row(const CanonicalW4& part, const KShard& shard, size_t rank, int64_t row, int8_t* whole) {
  const auto* codes = static_cast<const int8_t*>(part.codes) + row * shard.k();
  for (int64_t i = 0; i < shard.k(); ++i) {
    const int64_t column = shard.pad_begin + i;
    if (shard.holds(column)) {
      whole[column] = codes[i];
    } else if (codes[i] != 0) {
      return not_zero(rank, row, column, {shard.k_begin, shard.k_end});
    }
  }
  return {};
}

// Bytes into their place; where `filled` says that they are there already, they must be the same.
bool place_bytes(void* destination, const void* source, int64_t bytes, bool filled) {
  if (filled) return std::memcmp(destination, source, static_cast<size_t>(bytes)) == 0;
  std::memcpy(destination, source, static_cast<size_t>(bytes));
  return true;
}

// K ranges in rank order, one after the other, from 0 to K.
template <typename Matrix>
Status check_row_parts(std::span<const RowPart<Matrix>> parts) {
  if (parts.empty()) return make_error(ErrorCode::kInvalidArgument, "no shards to gather");
  int64_t next = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const KShard& shard = parts[i].shard;
    const int64_t k = shard.format.is_w4 ? shard.k() : shard.held();
    if (parts[i].matrix.n != parts[0].matrix.n || shard.format.k != parts[0].shard.format.k || parts[i].matrix.k != k) {
      return make_error(ErrorCode::kInvalidArgument,
                        "shard {} is [{}, {}] of K {}: expected [{}, {}] of K {}, like its plan and shard 0", i,
                        parts[i].matrix.n, parts[i].matrix.k, shard.format.k, parts[0].matrix.n, k,
                        parts[0].shard.format.k);
    }
    if (shard.k_begin != next) {
      return make_error(ErrorCode::kInvalidArgument, "shard {} holds columns from {}: expected from {}, in rank order",
                        i, shard.k_begin, next);
    }
    next = shard.k_end;
  }
  if (next == parts[0].shard.format.k) return {};
  return make_error(ErrorCode::kInvalidArgument, "the shards hold columns up to {}, and the matrix has {}", next,
                    parts[0].shard.format.k);
}

// Which rows a column-parallel gather has; every part [rows, k] like the first.
template <typename Matrix>
Status check_column_parts(std::span<const ColumnPart<Matrix>> parts, int64_t n) {
  if (parts.empty()) return make_error(ErrorCode::kInvalidArgument, "no shards to gather");
  std::vector<bool> held(static_cast<size_t>(n), false);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [matrix, rows] = parts[i];
    if (matrix.k != parts[0].matrix.k || matrix.n != rows.size() || rows.begin < 0 || rows.end > n) {
      return make_error(ErrorCode::kInvalidArgument,
                        "shard {} is [{}, {}] for rows {}..{}: expected K {} and {} rows in all", i, matrix.n, matrix.k,
                        rows.begin, rows.end, parts[0].matrix.k, n);
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) held[static_cast<size_t>(row)] = true;
  }
  for (int64_t row = 0; row < n; ++row) {
    if (!held[static_cast<size_t>(row)]) {
      return make_error(ErrorCode::kInvalidData, "row {} of {} is in no shard", row, n);
    }
  }
  return {};
}

template <typename Part>
Status check_alike(std::span<const Part> parts) {
  for (size_t i = 0; i < parts.size(); ++i) {
    const CanonicalW4& m = parts[i].matrix;
    QD_TRY_STATUS(check_canonical({&m, 1}));
    if (m.group_size != parts[0].matrix.group_size || m.source() != parts[0].matrix.source()) {
      return make_error(ErrorCode::kInvalidArgument,
                        "shard {} has group size {} and spells its codes otherwise than shard 0 (group size {}), or in "
                        "other groups",
                        i, m.group_size, parts[0].matrix.group_size);
    }
  }
  return {};
}

// The scales of one row of a row-parallel part. A group that two ranks share is there twice.
bool merge_scales(const CanonicalW4& part, const KShard& shard, int64_t row, std::vector<bool>& filled,
                  uint16_t* whole) {
  bool same = true;
  for (int64_t g = shard.group_begin(); g < shard.group_end(); ++g) {
    const int64_t source = row * shard.num_groups() + g - shard.group_begin();
    same = place_bytes(whole + g, at(part.scales, source * 2), 2, filled[static_cast<size_t>(g)]) && same;
  }
  return same;
}

Status merge_row_part(const RowPart<CanonicalW4>& part, size_t rank, std::vector<bool>& filled, OwnedW4& out) {
  const KShard& shard = part.shard;
  const int64_t groups = layout::num_groups(out.k, out.group_size);
  for (int64_t row = 0; row < out.n; ++row) {
    if (part.matrix.packed != nullptr) {
      QD_TRY_STATUS(merge_packed_row(part.matrix, shard, rank, row, out.packed.data() + row * out.k / 8));
    } else {
      QD_TRY_STATUS(merge_code_row(part.matrix, shard, rank, row, out.codes.data() + row * out.k));
    }
    if (!merge_scales(part.matrix, shard, row, filled, out.scales.data() + row * groups)) {
      return copies_differ(rank, row, "scales");
    }
  }
  for (int64_t g = shard.group_begin(); g < shard.group_end(); ++g) filled[static_cast<size_t>(g)] = true;
  return {};
}

}  // namespace

CanonicalW4 column_parallel_shard(const CanonicalW4& whole, Range rows) {
  QD_CHECK(rows.begin >= 0 && rows.begin < rows.end && rows.end <= whole.n, "a shard holds rows of the matrix");
  CanonicalW4 part = whole;
  part.n = rows.size();
  if (whole.packed != nullptr) part.packed = at(whole.packed, rows.begin * layout::ceil_div(whole.k, 8) * 4);
  if (whole.codes != nullptr) part.codes = at(whole.codes, rows.begin * whole.k);
  part.scales = at(whole.scales, rows.begin * groups_of(whole) * 2);
  if (whole.row_absmax != nullptr) part.row_absmax = whole.row_absmax + rows.begin;
  return part;
}

CanonicalDense column_parallel_shard(const CanonicalDense& whole, Range rows) {
  QD_CHECK(rows.begin >= 0 && rows.begin < rows.end && rows.end <= whole.n, "a shard holds rows of the matrix");
  return {rows.size(), whole.k, whole.type, at(whole.data, rows.begin * whole.k * value_bytes(whole.type))};
}

CanonicalW4 OwnedW4::view() const {
  CanonicalW4 m;
  m.n = n;
  m.k = k;
  m.group_size = group_size;
  const bool has_bytes = source == W4Source::kInt8;
  m.packed = has_bytes ? nullptr : packed.data();
  m.codes = has_bytes ? codes.data() : nullptr;
  m.scales = scales.data();
  if (!has_bytes) m.packed_source = source;
  m.row_absmax = row_absmax.empty() ? nullptr : row_absmax.data();
  return m;
}

CanonicalDense OwnedDense::view() const {
  return {n, k, type, data.data()};
}

Result<std::vector<float>> row_absmax(const CanonicalW4& matrix) {
  const int64_t groups = groups_of(matrix);
  std::vector<float> out;
  out.reserve(static_cast<size_t>(matrix.n));
  for (int64_t row = 0; row < matrix.n; ++row) {
    float absmax = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      const uint16_t scale = load_scale(matrix, row * groups + g);
      if (!is_finite_bf16(scale)) return bad_scale(1, {0, row}, g, scale);
      absmax = numerics::absmax_step(absmax, numerics::bf16_to_f32(scale));
    }
    out.push_back(absmax);
  }
  return out;
}

Result<OwnedW4> row_parallel_shard(const CanonicalW4& whole, const KShard& shard, ChannelScale channel) {
  check_planned(whole, shard);
  OwnedW4 out = allocate(whole.n, shard.k(), whole);
  const int64_t groups = groups_of(whole);
  for (int64_t row = 0; row < whole.n; ++row) {
    if (whole.packed != nullptr) {
      copy_packed_row(whole, shard, row, out.packed.data() + row * shard.k() / 8);
    } else {
      std::memcpy(out.codes.data() + row * shard.k() + shard.k_offset(), at(whole.codes, row * whole.k + shard.k_begin),
                  static_cast<size_t>(shard.held()));
    }
    std::memcpy(out.scales.data() + row * shard.num_groups(),
                at(whole.scales, (row * groups + shard.group_begin()) * 2),
                static_cast<size_t>(shard.num_groups() * 2));
  }
  if (channel == ChannelScale::kWholeRow) {
    QD_TRY(out.row_absmax, row_absmax(whole));
  }
  return out;
}

OwnedDense row_parallel_shard(const CanonicalDense& whole, const KShard& shard) {
  QD_CHECK(!shard.format.is_w4 && shard.format.k == whole.k, "a shard is cut from the matrix that it was planned for");
  const int64_t size = value_bytes(whole.type);
  OwnedDense out{whole.n, shard.held(), whole.type, {}};
  out.data.resize(static_cast<size_t>(out.n * out.k * size));
  for (int64_t row = 0; row < whole.n; ++row) {
    std::memcpy(out.data.data() + row * out.k * size, at(whole.data, (row * whole.k + shard.k_begin) * size),
                static_cast<size_t>(out.k * size));
  }
  return out;
}

Result<OwnedW4> gather_column_parallel(std::span<const ColumnPart<CanonicalW4>> parts, int64_t n) {
  QD_TRY_STATUS(check_column_parts(parts, n));
  QD_TRY_STATUS(check_alike(parts));
  OwnedW4 out = allocate(n, parts[0].matrix.k, parts[0].matrix);
  const int64_t groups = groups_of(parts[0].matrix);
  const bool has_bytes = out.source == W4Source::kInt8;
  const int64_t pitch = has_bytes ? out.k : out.k / 2;
  auto* codes =
      has_bytes ? reinterpret_cast<std::byte*>(out.codes.data()) : reinterpret_cast<std::byte*>(out.packed.data());
  std::vector<bool> filled(static_cast<size_t>(n), false);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [m, rows] = parts[i];
    const void* source = has_bytes ? m.codes : m.packed;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const bool again = filled[static_cast<size_t>(row)];
      const int64_t local = row - rows.begin;
      if (!place_bytes(codes + row * pitch, at(source, local * pitch), pitch, again))
        return copies_differ(i, local, "codes");
      if (!place_bytes(out.scales.data() + row * groups, at(m.scales, local * groups * 2), groups * 2, again)) {
        return copies_differ(i, local, "scales");
      }
      filled[static_cast<size_t>(row)] = true;
    }
  }
  return out;
}

Result<OwnedW4> gather_row_parallel(std::span<const RowPart<CanonicalW4>> parts) {
  QD_TRY_STATUS(check_row_parts(parts));
  QD_TRY_STATUS(check_alike(parts));
  OwnedW4 out = allocate(parts[0].matrix.n, parts[0].shard.format.k, parts[0].matrix);
  std::vector<bool> filled(static_cast<size_t>(layout::num_groups(out.k, out.group_size)), false);
  for (size_t i = 0; i < parts.size(); ++i) QD_TRY_STATUS(merge_row_part(parts[i], i, filled, out));
  return out;
}

Result<OwnedDense> gather_column_parallel(std::span<const ColumnPart<CanonicalDense>> parts, int64_t n) {
  QD_TRY_STATUS(check_column_parts(parts, n));
  const CanonicalDense& first = parts[0].matrix;
  const int64_t pitch = first.k * value_bytes(first.type);
  OwnedDense out{n, first.k, first.type, std::vector<std::byte>(static_cast<size_t>(n * pitch))};
  std::vector<bool> filled(static_cast<size_t>(n), false);
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [m, rows] = parts[i];
    if (m.type != first.type)
      return make_error(ErrorCode::kInvalidArgument, "shard {} has another type than shard 0", i);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t local = row - rows.begin;
      const bool again = filled[static_cast<size_t>(row)];
      if (!place_bytes(out.data.data() + row * pitch, at(m.data, local * pitch), pitch, again)) {
        return copies_differ(i, local, "values");
      }
      filled[static_cast<size_t>(row)] = true;
    }
  }
  return out;
}

Result<OwnedDense> gather_row_parallel(std::span<const RowPart<CanonicalDense>> parts) {
  QD_TRY_STATUS(check_row_parts(parts));
  const CanonicalDense& first = parts[0].matrix;
  const int64_t size = value_bytes(first.type);
  OwnedDense out{first.n, parts[0].shard.format.k, first.type, {}};
  out.data.resize(static_cast<size_t>(out.n * out.k * size));
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [m, shard] = parts[i];
    if (m.type != first.type)
      return make_error(ErrorCode::kInvalidArgument, "shard {} has another type than shard 0", i);
    for (int64_t row = 0; row < out.n; ++row) {
      std::memcpy(out.data.data() + (row * out.k + shard.k_begin) * size, at(m.data, row * m.k * size),
                  static_cast<size_t>(m.k * size));
    }
  }
  return out;
}

}  // namespace quadrille::prepare
