// SPDX-License-Identifier: Apache-2.0
// Rounds and transposes dense matrices into 16-lane blocks.
#include "prepare/prepare_bf16.h"

#include <atomic>
#include <cstring>
#include <type_traits>

#include "core/check.h"
#include "layout/bf16_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp16.h"
#include "prepare/parts.h"

namespace quadrille::prepare {
namespace {

using layout::kLanes;

// Columns that are converted together: 16 rows of them stay in the first cache while they are turned.
constexpr int64_t kTile = 64;

bool is_finite(uint16_t code) {
  return (code & 0x7f80) != 0x7f80;
}

struct Converted {
  bool finite = true;
  int64_t rounded = 0;
};

// `count` values from element `first` on as bf16 codes.
template <typename Source>
Converted convert(const CanonicalDense& m, int64_t first, int64_t count, uint16_t* codes) {
  Source values[kTile];
  std::memcpy(values, static_cast<const std::byte*>(m.data) + first * static_cast<int64_t>(sizeof(Source)),
              static_cast<size_t>(count) * sizeof(Source));
  Converted result;
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<Source, float>) {
      codes[i] = numerics::bf16_from_f32(values[i]);
      result.rounded += numerics::bits_of(numerics::bf16_to_f32(codes[i])) != numerics::bits_of(values[i]) ? 1 : 0;
    } else {
      codes[i] = values[i];
    }
    result.finite = result.finite && is_finite(codes[i]);
  }
  return result;
}

// Halves are widened first; the rest is the rule of fp32.
Converted convert_halves(const CanonicalDense& m, int64_t first, int64_t count, uint16_t* codes) {
  uint16_t halves[kTile];
  std::memcpy(halves, static_cast<const std::byte*>(m.data) + first * 2, static_cast<size_t>(count) * 2);
  float values[kTile];
  for (int64_t i = 0; i < count; ++i) values[i] = numerics::f16_to_f32(halves[i]);
  const CanonicalDense widened{1, count, DenseType::kF32, values};
  return convert<float>(widened, 0, count, codes);
}

Converted convert_any(const CanonicalDense& m, int64_t first, int64_t count, uint16_t* codes) {
  if (m.type == DenseType::kBf16) return convert<uint16_t>(m, first, count, codes);
  if (m.type == DenseType::kF32) return convert<float>(m, first, count, codes);
  return convert_halves(m, first, count, codes);
}

Error not_finite(std::span<const CanonicalDense> parts, const PartRow& place, int64_t column, uint16_t code) {
  return make_error(ErrorCode::kInvalidData,
                    "{}row {}, column {}: the weight is NaN, infinite or too large for bf16 (0x{:04X} there)",
                    parts.size() == 1 ? "" : fmt::format("matrix {}, ", place.part), place.row, column, code);
}

// One block of 16 rows; adds the number of rounded values to `num_rounded`.
Status fill_block(std::span<const CanonicalDense> parts, int64_t block, PreparedBf16& out,
                  std::atomic<int64_t>& num_rounded) {
  const layout::Bf16Lanes16 map{out.n, out.k};
  const int64_t lanes = out.n - block * kLanes < kLanes ? out.n - block * kLanes : kLanes;
  uint16_t tile[kLanes][kTile] = {};
  PartRow places[kLanes] = {};
  for (int64_t lane = 0; lane < lanes; ++lane) places[lane] = part_row(parts, block * kLanes + lane);
  int64_t rounded = 0;
  for (int64_t first = 0; first < out.k; first += kTile) {
    const int64_t count = out.k - first < kTile ? out.k - first : kTile;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const PartRow& place = places[lane];
      const Converted result = convert_any(parts[place.part], place.row * out.k + first, count, tile[lane]);
      rounded += result.rounded;
      if (result.finite) continue;
      int64_t i = 0;
      while (is_finite(tile[lane][i])) ++i;
      return not_finite(parts, place, first + i, tile[lane][i]);
    }
    uint16_t* destination = out.codes.data() + map.offset(block * kLanes, first);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t lane = 0; lane < kLanes; ++lane) destination[i * kLanes + lane] = tile[lane][i];
    }
  }
  num_rounded.fetch_add(rounded, std::memory_order_relaxed);
  return {};
}

}  // namespace

Result<PreparedBf16> prepare_bf16(std::span<const CanonicalDense> parts, ThreadPool* pool) {
  if (parts.empty()) return make_error(ErrorCode::kInvalidArgument, "no matrix to prepare");
  for (const CanonicalDense& m : parts) {
    if (m.n <= 0 || m.k <= 0 || m.data == nullptr || m.k != parts[0].k) {
      return make_error(ErrorCode::kInvalidArgument,
                        "a dense matrix needs data and positive sizes, stacked ones equal k: found [{}, {}] beside "
                        "[{}, {}]",
                        m.n, m.k, parts[0].n, parts[0].k);
    }
  }
  PreparedBf16 out;
  out.tag = layout::kBf16Lanes16Tag;
  out.n = total_rows(parts);
  out.k = parts[0].k;
  const layout::Bf16Lanes16 map{out.n, out.k};
  out.codes = AlignedBuffer<uint16_t>(map.size());
  std::atomic<int64_t> num_rounded{0};
  QD_TRY_STATUS(
      for_blocks(pool, map.blocks(), [&](int64_t block) { return fill_block(parts, block, out, num_rounded); }));
  out.num_rounded = num_rounded.load();
  return out;
}

Result<PreparedBf16> prepare_bf16(const CanonicalDense& matrix, ThreadPool* pool) {
  return prepare_bf16(std::span(&matrix, 1), pool);
}

std::vector<uint16_t> unprepare(const PreparedBf16& matrix) {
  QD_CHECK(matrix.tag == layout::kBf16Lanes16Tag, "unprepare() reads the 16-lane layout only");
  const layout::Bf16Lanes16 map{matrix.n, matrix.k};
  std::vector<uint16_t> out(static_cast<size_t>(matrix.n * matrix.k));
  for (int64_t row = 0; row < matrix.n; ++row) {
    for (int64_t k = 0; k < matrix.k; ++k) {
      out[static_cast<size_t>(row * matrix.k + k)] = matrix.codes[map.offset(row, k)];
    }
  }
  return out;
}

}  // namespace quadrille::prepare
