// SPDX-License-Identifier: Apache-2.0
// Rounds and transposes dense matrices into 16-lane blocks.
#include "prepare/prepare_bf16.h"

#include <atomic>
#include <cstring>

#include "core/check.h"
#include "layout/bf16_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp16.h"
#include "prepare/parts.h"

namespace quadrille::prepare {
namespace {

using layout::kLanes;

struct Rounded {
  uint16_t code;
  bool exact;
};

template <typename Source>
Source load(const CanonicalDense& m, int64_t index) {
  Source value;
  std::memcpy(&value, static_cast<const std::byte*>(m.data) + index * static_cast<int64_t>(sizeof(Source)),
              sizeof(Source));
  return value;
}

Rounded round_value(float value) {
  const uint16_t code = numerics::bf16_from_f32(value);
  return {code, numerics::bits_of(numerics::bf16_to_f32(code)) == numerics::bits_of(value)};
}

Rounded load_rounded(const CanonicalDense& m, int64_t index) {
  if (m.type == DenseType::kBf16) return {load<uint16_t>(m, index), true};
  if (m.type == DenseType::kF16) return round_value(numerics::f16_to_f32(load<uint16_t>(m, index)));
  return round_value(load<float>(m, index));
}

// One block of 16 rows; adds the number of rounded values to `num_rounded`.
Status fill_block(std::span<const CanonicalDense> parts, int64_t block, PreparedBf16& out,
                  std::atomic<int64_t>& num_rounded) {
  const layout::Bf16Lanes16 map{out.n, out.k};
  uint16_t* destination = out.codes.data() + map.offset(block * kLanes, 0);
  std::memset(destination, 0, static_cast<size_t>(out.k * kLanes) * 2);
  int64_t rounded = 0;
  for (int64_t lane = 0; lane < kLanes && block * kLanes + lane < out.n; ++lane) {
    const PartRow place = part_row(parts, block * kLanes + lane);
    const CanonicalDense& m = parts[place.part];
    for (int64_t k = 0; k < out.k; ++k) {
      const Rounded value = load_rounded(m, place.row * out.k + k);
      if ((value.code & 0x7f80) == 0x7f80) {
        return make_error(ErrorCode::kInvalidData,
                          "{}row {}, column {}: the weight is NaN, infinite or too large for bf16 (0x{:04X} there)",
                          parts.size() == 1 ? "" : fmt::format("matrix {}, ", place.part), place.row, k, value.code);
      }
      destination[k * kLanes + lane] = value.code;
      rounded += value.exact ? 0 : 1;
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
