// SPDX-License-Identifier: Apache-2.0
// The reading behind weight_reader.h.
#include "model/weight_reader.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "numerics/bf16.h"
#include "numerics/fp16.h"

namespace quadrille::model {
namespace {

using formats::DType;
using formats::TensorView;

prepare::DenseType dense_type(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return prepare::DenseType::kBf16;
    case DType::kF16:
      return prepare::DenseType::kF16;
    default:
      return prepare::DenseType::kF32;
  }
}

int64_t num_rows(const TensorView& tensor) {
  return tensor.shape.empty() ? 1 : tensor.shape[0];
}

// The bytes of some rows; a row is what the first dimension counts.
Result<std::vector<std::byte>> read_bytes(const TensorView& tensor, layout::Range rows) {
  const auto row_bytes = static_cast<int64_t>(tensor.bytes.size()) / std::max<int64_t>(num_rows(tensor), 1);
  std::vector<std::byte> bytes(static_cast<size_t>(rows.size() * row_bytes));
  QD_TRY_STATUS(tensor.copy_part(static_cast<uint64_t>(rows.begin * row_bytes), bytes));
  return bytes;
}

layout::Range rows_of(const MatrixCut& cut, const ModuleSource& source) {
  return cut.rows.value_or(layout::Range{0, source.n()});
}

// "[row, column]" of element `index`.
std::string place_text(const TensorView& tensor, size_t index) {
  if (tensor.shape.size() != 2) return fmt::format("[{}]", index);
  const auto width = static_cast<size_t>(tensor.shape[1]);
  return fmt::format("[{}, {}]", index / width, index % width);
}

Error not_finite(const TensorView& tensor, size_t index, float value) {
  return make_error(ErrorCode::kInvalidData, "{}: element {} is {}; expected finite numbers: the file is damaged",
                    tensor.where(), place_text(tensor, index), std::isnan(value) ? "NaN" : "infinite");
}

// Whether no bf16 code has all bits of its exponent set, four at a time: a lane of x is 0 where one has, else at least
// 0x80 and at most 0x7f80, so that adding 0x7fff sets its highest bit and carries nothing into the next.
bool all_finite(std::span<const uint16_t> codes) {
  constexpr uint64_t kExponents = 0x7f807f807f807f80, kSevens = 0x7fff7fff7fff7fff, kHighest = 0x8000800080008000;
  uint64_t finite = kHighest;
  size_t i = 0;
  for (; i + 4 <= codes.size(); i += 4) {
    uint64_t word;
    std::memcpy(&word, codes.data() + i, sizeof word);
    const uint64_t x = (word & kExponents) ^ kExponents;
    finite &= x + kSevens;
  }
  for (; i < codes.size(); ++i) {
    if ((codes[i] & 0x7f80) == 0x7f80) return false;
  }
  return (finite & kHighest) == kHighest;
}

// `rows` of a bf16 tensor as they stand. False: something is not finite, or it is another type; nothing is said.
Result<bool> copy_finite_bf16(const TensorView& tensor, layout::Range rows, std::span<uint16_t> codes) {
  if (tensor.dtype != DType::kBF16) return false;
  const auto row_bytes = static_cast<int64_t>(tensor.bytes.size()) / std::max<int64_t>(num_rows(tensor), 1);
  QD_CHECK(codes.size_bytes() == static_cast<size_t>(rows.size() * row_bytes), "room for all rows");
  QD_TRY_STATUS(tensor.copy_part(static_cast<uint64_t>(rows.begin * row_bytes), std::as_writable_bytes(codes)));
  return all_finite(codes);
}

prepare::CanonicalW4 canonical_of(const ModuleSource& source, int64_t n, const void* codes, const uint16_t* scales) {
  prepare::CanonicalW4 matrix;
  matrix.n = n;
  matrix.k = source.k();
  matrix.group_size = source.decision.group_size;
  const bool packed = source.decision.format == formats::WeightFormat::kPackQuantized;
  (packed ? matrix.packed : matrix.codes) = codes;
  matrix.scales = scales;
  return matrix;
}

// An error of stacked matrices, traced to the tensor that made it.
template <typename Part, typename Prepare>
Error name_part(std::span<const ModuleSource* const> sources, const std::vector<Part>& parts, const Error& stacked,
                const Prepare& prepare) {
  for (size_t i = 0; i < parts.size(); ++i) {
    if (auto one = prepare(parts[i]); !one) return one.error().in(sources[i]->weight->where());
  }
  return stacked.in(sources[0]->weight->where());
}

}  // namespace

Result<std::vector<float>> WeightReader::read_floats(const TensorView& tensor, layout::Range rows) const {
  QD_TRY(const std::vector<std::byte> bytes, read_bytes(tensor, rows));
  const int64_t width = tensor.num_elements() / std::max<int64_t>(num_rows(tensor), 1);
  const auto first = static_cast<size_t>(rows.begin * width);
  std::vector<float> values(static_cast<size_t>(rows.size() * width));
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.dtype == DType::kF32) {
      std::memcpy(&values[i], bytes.data() + 4 * i, 4);
    } else {
      uint16_t code;
      std::memcpy(&code, bytes.data() + 2 * i, 2);
      values[i] = tensor.dtype == DType::kBF16 ? numerics::bf16_to_f32(code) : numerics::f16_to_f32(code);
    }
    if (!std::isfinite(values[i])) return not_finite(tensor, first + i, values[i]);
  }
  return values;
}

Result<std::vector<uint16_t>> WeightReader::read_bf16(const ModuleSource& source, std::optional<layout::Range> rows) {
  const layout::Range taken = rows.value_or(layout::Range{0, source.n()});
  QD_TRY(const std::vector<float> values, read_floats(*source.weight, taken));
  const auto first = static_cast<size_t>(taken.begin * source.k());
  std::vector<uint16_t> codes(values.size());
  int64_t rounded = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    codes[i] = numerics::bf16_from_f32(values[i]);
    const float back = numerics::bf16_to_f32(codes[i]);
    if (!std::isfinite(back)) return not_finite(*source.weight, first + i, back);
    rounded += back != values[i] ? 1 : 0;
  }
  count_weights(rounded);
  return codes;
}

Status WeightReader::read_bf16_into(const ModuleSource& source, layout::Range rows, std::span<uint16_t> codes) {
  QD_TRY(const bool is_done, copy_finite_bf16(*source.weight, rows, codes));
  if (is_done) return {};
  QD_TRY(const std::vector<uint16_t> read, read_bf16(source, rows));
  std::copy(read.begin(), read.end(), codes.begin());
  return {};
}

Status WeightReader::read_scales_into(const ModuleSource& source, layout::Range rows, std::span<uint16_t> codes) {
  QD_TRY(const bool is_done, copy_finite_bf16(*source.scale, rows, codes));
  if (is_done) return {};
  QD_TRY(const std::vector<uint16_t> read, read_scales(source, rows));
  QD_CHECK(codes.size() == read.size(), "room for all scales");
  std::copy(read.begin(), read.end(), codes.begin());
  return {};
}

Result<std::vector<uint16_t>> WeightReader::read_scales(const ModuleSource& source, layout::Range rows) {
  const TensorView& tensor = *source.scale;
  QD_TRY(const std::vector<float> values, read_floats(tensor, rows));
  const size_t first = static_cast<size_t>(rows.begin) * (values.size() / static_cast<size_t>(rows.size()));
  std::vector<uint16_t> codes(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    codes[i] = numerics::bf16_from_f32(values[i]);
    const float back = numerics::bf16_to_f32(codes[i]);
    if (back == values[i]) continue;
    if (!std::isfinite(back)) return not_finite(tensor, first + i, back);
    if (!round_scales_) {
      return make_error(ErrorCode::kUnsupported,
                        "{}: scale {} is {} ({}), which bf16 does not hold exactly; weight scales are bf16: run with "
                        "'--scales round' to round them",
                        tensor.where(), place_text(tensor, first + i), values[i], formats::dtype_name(tensor.dtype));
    }
    count_scale(values[i], back);
  }
  return codes;
}

Status WeightReader::read_w4(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t expert,
                             ThreadPool* pool, LinearStore* store) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<std::vector<uint16_t>> scales;
  std::vector<prepare::OwnedW4> shards;
  shards.reserve(parts.size());  // views point into them
  std::vector<prepare::CanonicalW4> canonical;
  for (const ModuleSource* source : parts) {
    const layout::Range rows = rows_of(cut, *source);
    QD_TRY(std::vector<std::byte> codes, read_bytes(*source->weight, rows));
    QD_TRY(std::vector<uint16_t> scale, read_scales(*source, rows));
    bytes.push_back(std::move(codes));
    scales.push_back(std::move(scale));
    prepare::CanonicalW4 matrix = canonical_of(*source, rows.size(), bytes.back().data(), scales.back().data());
    if (cut.columns) {
      if (auto legal = prepare::check_canonical({&matrix, 1}); !legal) return legal.error().in(source->weight->where());
      auto shard = prepare::row_parallel_shard(matrix, *cut.columns, channel_);
      if (!shard) return shard.error().in(source->weight->where());
      shards.push_back(std::move(*shard));
      matrix = shards.back().view();
    }
    canonical.push_back(matrix);
  }
  auto prepared = prepare::prepare_w4(canonical, numerics_, pool);
  if (!prepared) {
    return name_part(parts, canonical, prepared.error(),
                     [&](const prepare::CanonicalW4& part) { return prepare::prepare_w4(part, numerics_); });
  }
  store->w4[expert] = std::move(*prepared);
  return {};
}

Status WeightReader::read_dense(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t expert,
                                ThreadPool* pool, LinearStore* store) {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<prepare::OwnedDense> shards;
  shards.reserve(parts.size());  // views point into them
  std::vector<prepare::CanonicalDense> canonical;
  for (const ModuleSource* source : parts) {
    const layout::Range rows = rows_of(cut, *source);
    QD_TRY(std::vector<std::byte> values, read_bytes(*source->weight, rows));
    bytes.push_back(std::move(values));
    canonical.push_back({rows.size(), source->k(), dense_type(source->weight->dtype), bytes.back().data()});
    if (!cut.columns) continue;
    shards.push_back(prepare::row_parallel_shard(canonical.back(), *cut.columns));
    canonical.back() = shards.back().view();
  }
  auto prepared = prepare::prepare_bf16(canonical, pool);
  if (!prepared) {
    return name_part(parts, canonical, prepared.error(),
                     [](const prepare::CanonicalDense& part) { return prepare::prepare_bf16(part); });
  }
  count_weights(prepared->num_rounded);
  store->bf16[expert] = std::move(*prepared);
  return {};
}

Status WeightReader::read_linear(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t expert,
                                 ThreadPool* pool, LinearStore* store) {
  if (parts[0]->quantised()) {
    QD_TRY_STATUS(read_w4(parts, cut, expert, pool, store));
  } else {
    QD_TRY_STATUS(read_dense(parts, cut, expert, pool, store));
  }
  if (parts[0]->bias == nullptr || !cut.takes_bias) return {};
  QD_CHECK(parts.size() == 1 && expert == 0, "a bias belongs to a single matrix");
  QD_TRY(store->bias, read_floats(*parts[0]->bias, rows_of(cut, *parts[0])));
  return {};
}

Status WeightReader::read_canonical(const ModuleSource& source, const MatrixCut& cut, const CanonicalRoom& room) {
  if (cut.columns) return read_columns(source, *cut.columns, room);
  const layout::Range rows = rows_of(cut, source);
  const auto row_bytes = static_cast<int64_t>(source.weight->bytes.size()) / source.n();
  QD_CHECK(room.codes.size() == static_cast<size_t>(rows.size() * row_bytes), "room for all codes");
  QD_TRY_STATUS(source.weight->copy_part(static_cast<uint64_t>(rows.begin * row_bytes), room.codes));
  QD_TRY_STATUS(read_scales_into(source, rows, room.scales));
  if (source.decision.format == formats::WeightFormat::kPackQuantized) return {};
  const auto is_code = [](std::byte b) {
    const auto code = static_cast<int8_t>(b);
    return code >= -8 && code <= 7;
  };
  if (std::all_of(room.codes.begin(), room.codes.end(), is_code)) return {};
  prepare::CanonicalW4 matrix = canonical_of(source, rows.size(), room.codes.data(), room.scales.data());
  const auto refused = prepare::prepare_w4(matrix, numerics_);
  QD_CHECK(!refused, "a code outside of -8..7 is refused");
  return refused.error().in(source.weight->where());
}

// Through a whole copy: the columns of a row are not contiguous in a file.
Status WeightReader::read_columns(const ModuleSource& source, const layout::KShard& columns,
                                  const CanonicalRoom& room) {
  const layout::Range all{0, source.n()};
  QD_TRY(const std::vector<std::byte> codes, read_bytes(*source.weight, all));
  QD_TRY(const std::vector<uint16_t> scales, read_scales(source, all));
  const prepare::CanonicalW4 matrix = canonical_of(source, source.n(), codes.data(), scales.data());
  if (auto legal = prepare::check_canonical({&matrix, 1}); !legal) return legal.error().in(source.weight->where());
  auto shard = prepare::row_parallel_shard(matrix, columns, channel_);
  if (!shard) return shard.error().in(source.weight->where());
  const auto held =
      matrix.packed != nullptr ? std::as_bytes(std::span(shard->packed)) : std::as_bytes(std::span(shard->codes));
  QD_CHECK(held.size() == room.codes.size() && shard->scales.size() == room.scales.size(), "room for the shard");
  std::copy(held.begin(), held.end(), room.codes.begin());
  std::copy(shard->scales.begin(), shard->scales.end(), room.scales.begin());
  if (room.row_absmax.empty()) return {};
  QD_CHECK(shard->row_absmax.size() == room.row_absmax.size(), "room for the maxima of the rows");
  std::copy(shard->row_absmax.begin(), shard->row_absmax.end(), room.row_absmax.begin());
  return {};
}

Result<std::vector<float>> WeightReader::read_bias(const ModuleSource& source, layout::Range rows) const {
  return read_floats(*source.bias, rows);
}

void WeightReader::count_scale(float value, float rounded) {
  const std::lock_guard lock(mutex_);
  ++rounded_scales_;
  const double error = std::abs((static_cast<double>(rounded) - value) / value);
  largest_scale_error_ = std::max(largest_scale_error_, error);
}

void WeightReader::count_weights(int64_t rounded) {
  if (rounded == 0) return;
  const std::lock_guard lock(mutex_);
  rounded_weights_ += rounded;
}

std::vector<std::string> WeightReader::notes() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> notes;
  if (rounded_scales_ > 0) {
    notes.push_back(fmt::format("rounded {} weight scales to bf16; the largest relative error is {:.3g}",
                                rounded_scales_, largest_scale_error_));
  }
  if (rounded_weights_ > 0) {
    notes.push_back(fmt::format("rounded {} unquantised weights to bf16 (they were F16 or F32)", rounded_weights_));
  }
  return notes;
}

}  // namespace quadrille::model
