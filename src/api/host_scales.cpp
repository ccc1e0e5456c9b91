// SPDX-License-Identifier: Apache-2.0
// Quantisation and the conversions of the `vllm` numerics for tensors of any rank and stride, over quantize/ and
// prepare/vllm_stages.h.
#include <cstring>
#include <span>

#include "api/call.h"
#include "api/host.h"
#include "prepare/parts.h"
#include "prepare/vllm_stages.h"
#include "quantize/w4_group.h"

namespace quadrille::api {
namespace {

struct TypeName {
  int32_t type;
  const char* name;
  size_t bytes;
};
constexpr TypeName kBf16{QD_TYPE_BF16, "bf16", 2};
constexpr TypeName kE4m3{QD_TYPE_E4M3, "e4m3", 1};
constexpr TypeName kI32{QD_TYPE_I32, "int32", 4};

Status check_tensor(const qd_tensor* tensor, const char* name, int32_t min_rank) {
  if (tensor == nullptr) return make_error(ErrorCode::kInvalidArgument, "{}: a null pointer", name);
  if (tensor->rank < min_rank || tensor->rank > 4) {
    return make_error(ErrorCode::kInvalidArgument, "{}: expected a tensor of rank {} to 4, found rank {}", name,
                      min_rank, tensor->rank);
  }
  for (int32_t i = 0; i < tensor->rank; ++i) {
    if (tensor->shape[i] < 1) {
      return make_error(ErrorCode::kInvalidArgument, "{}: dimension {}: expected at least 1, found {}", name, i,
                        tensor->shape[i]);
    }
  }
  return check_given(tensor->data, name);
}

Status check_type(const qd_tensor& tensor, const char* name, const TypeName& expected) {
  if (tensor.type == expected.type) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: expected type {} ({}), found {}", name, expected.type,
                    expected.name, tensor.type);
}

int64_t last_dimension(const qd_tensor& tensor) {
  return tensor.shape[tensor.rank - 1];
}

int64_t leading_rows(const qd_tensor& tensor) {
  int64_t rows = 1;
  for (int32_t i = 0; i + 1 < tensor.rank; ++i) rows *= tensor.shape[i];
  return rows;
}

// First byte of row `row` of the leading dimensions.
const std::byte* row_begin(const qd_tensor& tensor, int64_t row, size_t element_bytes) {
  int64_t offset = 0;
  for (int32_t i = tensor.rank - 2; i >= 0; --i) {
    offset += row % tensor.shape[i] * tensor.strides[i];
    row /= tensor.shape[i];
  }
  return static_cast<const std::byte*>(tensor.data) + offset * static_cast<int64_t>(element_bytes);
}

// The elements of one row, one behind the other.
void copy_row(const qd_tensor& tensor, int64_t row, size_t element_bytes, std::byte* out) {
  const std::byte* from = row_begin(tensor, row, element_bytes);
  const int64_t stride = tensor.strides[tensor.rank - 1] * static_cast<int64_t>(element_bytes);
  for (int64_t i = 0; i < last_dimension(tensor); ++i) {
    std::memcpy(out + static_cast<size_t>(i) * element_bytes, from + i * stride, element_bytes);
  }
}

// [rows, last dimension] without gaps.
template <typename T>
std::vector<T> contiguous(const qd_tensor& tensor) {
  const int64_t rows = leading_rows(tensor);
  const int64_t width = last_dimension(tensor);
  std::vector<T> out(static_cast<size_t>(rows * width));
  for (int64_t row = 0; row < rows; ++row) {
    copy_row(tensor, row, sizeof(T), reinterpret_cast<std::byte*>(out.data() + row * width));
  }
  return out;
}

template <typename T>
void give(const std::vector<T>& values, T* out) {
  if (out != nullptr && !values.empty()) std::memcpy(out, values.data(), values.size() * sizeof(T));
}

struct WeightType {
  formats::DType dtype;
  size_t bytes;
};
Result<WeightType> weight_type(const qd_tensor& weight) {
  switch (weight.type) {
    case QD_TYPE_BF16:
      return WeightType{formats::DType::kBF16, 2};
    case QD_TYPE_F16:
      return WeightType{formats::DType::kF16, 2};
    case QD_TYPE_F32:
      return WeightType{formats::DType::kF32, 4};
    default:
      return make_error(ErrorCode::kInvalidArgument, "weight: expected type 0 (bf16), 1 (fp16) or 2 (fp32), found {}",
                        weight.type);
  }
}

struct QuantizedRows {
  int64_t group_size;
  quantize::Quotient quotient;
  uint32_t* codes;
  uint16_t* scales;
};

Status quantize_one(const qd_tensor& weight, const WeightType& type, int64_t row, const QuantizedRows& out) {
  const int64_t k = last_dimension(weight);
  std::vector<std::byte> bytes(static_cast<size_t>(k) * type.bytes);
  std::vector<float> x(static_cast<size_t>(k));
  copy_row(weight, row, type.bytes, bytes.data());
  quantize::widen_row(bytes.data(), type.dtype, k, x.data());
  if (const int64_t bad = quantize::first_not_finite(x); bad >= 0) {
    return make_error(ErrorCode::kInvalidData, "weight: row {}, column {}: expected finite weights, found {}", row, bad,
                      x[static_cast<size_t>(bad)]);
  }
  std::vector<int8_t> codes(static_cast<size_t>(k));
  quantize::quantize_row(x, out.group_size, out.quotient, codes.data(),
                         out.scales + row * quantize::scales_per_row(k, out.group_size));
  std::vector<int32_t> words(static_cast<size_t>(quantize::words_per_row(k)));
  quantize::pack_row(codes, words.data());
  std::memcpy(out.codes + row * quantize::words_per_row(k), words.data(), words.size() * sizeof(int32_t));
  return {};
}

Status quantize_all(HostPlace& place, const qd_tensor* weight, const QuantizedRows& out) {
  QD_TRY_STATUS(place.check_process());
  QD_TRY_STATUS(check_tensor(weight, "weight", 1));
  QD_TRY(const WeightType type, weight_type(*weight));
  QD_TRY_STATUS(quantize::check_group_size(last_dimension(*weight), out.group_size));
  QD_TRY_STATUS(check_given(out.codes, "codes"));
  QD_TRY_STATUS(check_given(out.scales, "scales"));
  return prepare::for_blocks(place.pool.get(), leading_rows(*weight),
                             [&](int64_t row) { return quantize_one(*weight, type, row, out); });
}

Status split(const qd_tensor* scales, float* channel, float* channel8, uint8_t* group, uint8_t* group8) {
  QD_TRY_STATUS(check_tensor(scales, "scales", 1));
  QD_TRY_STATUS(check_type(*scales, "scales", kBf16));
  QD_TRY(const prepare::VllmScales made,
         prepare::split_scales(contiguous<uint16_t>(*scales), leading_rows(*scales), last_dimension(*scales)));
  give(made.channel_scale, channel);
  give(made.channel_scale8, channel8);
  give(made.group_scale_e4m3, group);
  give(made.group_scale8_e4m3, group8);
  return {};
}

Status tables(const qd_tensor* scales, uint8_t* out) {
  QD_TRY_STATUS(check_tensor(scales, "group_scale8", 1));
  QD_TRY_STATUS(check_type(*scales, "group_scale8", kE4m3));
  QD_TRY_STATUS(check_given(out, "tables"));
  give(prepare::scale_tables(contiguous<uint8_t>(*scales)), out);
  return {};
}

Status packed_tables(const qd_tensor* scales, uint8_t* out) {
  QD_TRY_STATUS(check_tensor(scales, "group_scale8", 2));
  QD_TRY_STATUS(check_type(*scales, "group_scale8", kE4m3));
  QD_TRY_STATUS(check_given(out, "tables"));
  const int64_t n = scales->shape[scales->rank - 2];
  give(
      prepare::packed_scale_tables(contiguous<uint8_t>(*scales), leading_rows(*scales) / n, n, last_dimension(*scales)),
      out);
  return {};
}

Status convert_words(const qd_tensor* words, int32_t conversion, uint32_t* out) {
  QD_TRY_STATUS(check_tensor(words, "words", 1));
  QD_TRY_STATUS(check_type(*words, "words", kI32));
  QD_TRY_STATUS(check_given(out, "converted"));
  if (conversion != QD_WORDS_FLIP_SIGN && conversion != QD_WORDS_UNIFIED) {
    return make_error(ErrorCode::kUnsupported, "conversion {}: legal are 0 (flip the sign), 1 (unified codes)",
                      conversion);
  }
  std::vector<uint32_t> made = contiguous<uint32_t>(*words);
  conversion == QD_WORDS_UNIFIED ? prepare::unified_in_place(made) : prepare::int4_in_place(made);
  give(made, out);
  return {};
}

Status reorder_words(const qd_tensor* words, uint32_t* out) {
  QD_TRY_STATUS(check_tensor(words, "words", 2));
  QD_TRY_STATUS(check_type(*words, "words", kI32));
  QD_TRY_STATUS(check_given(out, "reordered"));
  const std::vector<uint32_t> all = contiguous<uint32_t>(*words);
  const int64_t n = words->shape[words->rank - 2];
  const auto each = static_cast<size_t>(n * last_dimension(*words));
  for (size_t at = 0; at < all.size(); at += each) {
    QD_TRY(const std::vector<uint32_t> made,
           prepare::reorder(std::span(all).subspan(at, each), n, 8 * last_dimension(*words)));
    give(made, out + at);
  }
  return {};
}

Status to_e4m3(const qd_tensor* words, const qd_tensor* scales, int64_t group_size, uint8_t* out) {
  QD_TRY_STATUS(check_tensor(words, "words", 1));
  QD_TRY_STATUS(check_type(*words, "words", kI32));
  QD_TRY_STATUS(check_tensor(scales, "group_scale8", 1));
  QD_TRY_STATUS(check_type(*scales, "group_scale8", kE4m3));
  QD_TRY_STATUS(check_given(out, "bytes"));
  const int64_t k = 8 * last_dimension(*words);
  if (group_size < 0) {
    return make_error(ErrorCode::kInvalidArgument, "group_size: expected 0 (one scale a row) or more, found {}",
                      group_size);
  }
  const int64_t groups = group_size == 0 ? 1 : (k + group_size - 1) / group_size;
  if (leading_rows(*scales) != leading_rows(*words) || last_dimension(*scales) != groups) {
    return make_error(ErrorCode::kInvalidArgument,
                      "group_scale8: expected {} rows of {} scales (k {}, group size {}), found {} of {}",
                      leading_rows(*words), groups, k, group_size, leading_rows(*scales), last_dimension(*scales));
  }
  give(prepare::weight_bytes(contiguous<uint32_t>(*words), contiguous<uint8_t>(*scales), leading_rows(*words), k,
                             group_size),
       out);
  return {};
}

}  // namespace
}  // namespace quadrille::api

using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::guarded;

extern "C" {

qd_result qd_quantize(const qd_host* host, const qd_tensor* weight, int64_t group_size, int32_t quotient,
                      uint32_t* codes, uint16_t* scales, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(host, "host"));
    if (quotient != QD_QUOTIENT_F32 && quotient != QD_QUOTIENT_BF16) {
      return quadrille::make_error(quadrille::ErrorCode::kUnsupported, "quotient {}: legal are 0 (f32), 1 (bf16)",
                                   quotient);
    }
    const auto rounding =
        quotient == QD_QUOTIENT_BF16 ? quadrille::quantize::Quotient::kBf16 : quadrille::quantize::Quotient::kF32;
    return quadrille::api::quantize_all(*host->place, weight, {group_size, rounding, codes, scales});
  });
}

qd_result qd_scales_split(const qd_tensor* scales, float* channel_scale, float* channel_scale8, uint8_t* group_scale,
                          uint8_t* group_scale8, qd_error* error) {
  return guarded(
      error, [&] { return quadrille::api::split(scales, channel_scale, channel_scale8, group_scale, group_scale8); });
}

qd_result qd_scales_tables(const qd_tensor* group_scale8, uint8_t* tables, qd_error* error) {
  return guarded(error, [&] { return quadrille::api::tables(group_scale8, tables); });
}

qd_result qd_scales_packed_tables(const qd_tensor* group_scale8, uint8_t* tables, qd_error* error) {
  return guarded(error, [&] { return quadrille::api::packed_tables(group_scale8, tables); });
}

qd_result qd_words_convert(const qd_tensor* words, int32_t conversion, uint32_t* converted, qd_error* error) {
  return guarded(error, [&] { return quadrille::api::convert_words(words, conversion, converted); });
}

qd_result qd_words_reorder(const qd_tensor* words, uint32_t* reordered, qd_error* error) {
  return guarded(error, [&] { return quadrille::api::reorder_words(words, reordered); });
}

qd_result qd_words_to_e4m3(const qd_tensor* words, const qd_tensor* group_scale8, int64_t group_size, uint8_t* bytes,
                           qd_error* error) {
  return guarded(error, [&] { return quadrille::api::to_e4m3(words, group_scale8, group_size, bytes); });
}

}  // extern "C"
