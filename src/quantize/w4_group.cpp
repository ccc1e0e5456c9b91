// SPDX-License-Identifier: Apache-2.0
#include "quantize/w4_group.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "formats/tensor_view.h"
#include "numerics/bf16.h"
#include "numerics/fp16.h"
#include "numerics/int4.h"

namespace quadrille::quantize {
namespace {

constexpr float kHalfRange = 7.5f;            // codes -8..7 span 15 steps
constexpr uint16_t kZeroGroupScale = 0x3c00;  // bf16 2^-7, the library's scale of a group of zeros
constexpr int64_t kGroupSizes[] = {32, 64, 128};

// Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even, in any vector unit.
inline float round_to_int(float x) {
  constexpr float kShift = 12582912.0f;
  return (x + kShift) - kShift;
}

float absmax(const float* x, int64_t count) {
  float result = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(x[i]);
    result = magnitude > result ? magnitude : result;
  }
  return result;
}

// The quotient as the division gives it, or rounded to bf16: numerics::round_to_bf16 without its NaN branch, which
// would keep the loop scalar (x is finite and scale > 0, so the quotient is a number).
template <Quotient kQuotient>
inline float settle(float quotient) {
  if constexpr (kQuotient == Quotient::kF32) return quotient;
  const uint32_t u = __builtin_bit_cast(uint32_t, quotient);
  return __builtin_bit_cast(float, (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u);
}

template <Quotient kQuotient>
void quantize_group(const float* x, int64_t count, float scale, int8_t* codes) {
  for (int64_t i = 0; i < count; ++i) {
    float q = settle<kQuotient>(x[i] / scale);
    q = q < -8.0f ? -8.0f : q;
    q = q > 7.0f ? 7.0f : q;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>(round_to_int(q)));
  }
}

}  // namespace

const char* quotient_name(Quotient quotient) {
  return quotient == Quotient::kF32 ? "f32" : "bf16";
}

int64_t scales_per_row(int64_t k, int64_t group_size) {
  return group_size == 0 ? 1 : k / group_size;
}

int64_t words_per_row(int64_t k) {
  return (k + numerics::kNibblesPerWord - 1) / numerics::kNibblesPerWord;
}

void quantize_row(std::span<const float> x, int64_t group_size, Quotient quotient, int8_t* codes, uint16_t* scales) {
  const auto k = static_cast<int64_t>(x.size());
  const int64_t group = group_size == 0 ? k : group_size;
  QD_CHECK(group_size >= 0 && (k == 0 || k % group == 0), "K must be a multiple of the group size");
  for (int64_t first = 0, g = 0; first < k; first += group, ++g) {
    scales[g] = numerics::bf16_from_f32(absmax(x.data() + first, group) / kHalfRange);
    if (scales[g] == 0) scales[g] = kZeroGroupScale;
    const float scale = numerics::bf16_to_f32(scales[g]);
    if (quotient == Quotient::kF32)
      quantize_group<Quotient::kF32>(x.data() + first, group, scale, codes + first);
    else
      quantize_group<Quotient::kBf16>(x.data() + first, group, scale, codes + first);
  }
}

void pack_row(std::span<const int8_t> codes, int32_t* words) {
  const auto k = static_cast<int64_t>(codes.size());
  for (int64_t word = 0; word < words_per_row(k); ++word) {
    uint32_t bits = 0;
    const int64_t first = word * numerics::kNibblesPerWord;
    const int64_t count = std::min<int64_t>(numerics::kNibblesPerWord, k - first);
    for (int64_t j = 0; j < count; ++j) bits |= numerics::uint4b8_of_q(codes[first + j]) << (4 * j);
    words[word] = static_cast<int32_t>(bits);
  }
}

void unpack_row(const int32_t* words, std::span<int8_t> codes) {
  for (size_t i = 0; i < codes.size(); ++i) {
    const auto bits = static_cast<uint32_t>(words[i / numerics::kNibblesPerWord]);
    codes[i] = static_cast<int8_t>(
        numerics::q_of_uint4b8(numerics::nibble(bits, static_cast<int>(i % numerics::kNibblesPerWord))));
  }
}

void widen_row(const std::byte* source, formats::DType dtype, int64_t count, float* destination) {
  if (dtype == formats::DType::kF32) {
    std::memcpy(destination, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  QD_CHECK(dtype == formats::DType::kBF16 || dtype == formats::DType::kF16, "widen_row takes BF16, F16 and F32");
  const bool is_bf16 = dtype == formats::DType::kBF16;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t code = 0;
    std::memcpy(&code, source + 2 * i, 2);
    destination[i] = is_bf16 ? numerics::bf16_to_f32(code) : numerics::f16_to_f32(code);
  }
}

int64_t first_not_finite(std::span<const float> x) {
  // One pass without branches decides; the search runs only when something is wrong.
  uint32_t worst = 0;
  for (const float value : x) worst = std::max(worst, __builtin_bit_cast(uint32_t, value) & 0x7fffffffu);
  if (worst < 0x7f800000u) return -1;
  const auto place = std::find_if(x.begin(), x.end(), [](float value) { return !std::isfinite(value); });
  return place - x.begin();
}

std::string legal_group_sizes(int64_t k) {
  std::string text;
  for (const int64_t size : kGroupSizes)
    if (k % size == 0) text += std::to_string(size) + ", ";
  return text + "channel";
}

Status check_group_size(int64_t k, int64_t group_size) {
  if (group_size != 0 && std::find(std::begin(kGroupSizes), std::end(kGroupSizes), group_size) == std::end(kGroupSizes))
    return make_error(ErrorCode::kInvalidArgument, "group size {} is not run; expected 32, 64, 128 or channel",
                      group_size);
  if (group_size != 0 && k % group_size != 0)
    return make_error(ErrorCode::kInvalidArgument, "group size {} does not divide K = {}; legal here: {}", group_size,
                      k, legal_group_sizes(k));
  return {};
}

Result<W4Tensor> quantize_tensor(std::span<const std::byte> weight, formats::DType dtype,
                                 std::span<const int64_t> shape, int64_t group_size, Quotient quotient) {
  if (shape.size() != 2 && shape.size() != 3)
    return make_error(ErrorCode::kInvalidArgument, "expected a matrix [N,K] or a stack [E,N,K], found {}",
                      formats::shape_text(shape));
  if (dtype != formats::DType::kBF16 && dtype != formats::DType::kF16 && dtype != formats::DType::kF32)
    return make_error(ErrorCode::kInvalidArgument, "expected BF16, F16 or F32, found {}", formats::dtype_name(dtype));
  const int64_t k = shape.back();
  const int64_t rows = (shape.size() == 3 ? shape[0] : 1) * shape[shape.size() - 2];
  const int64_t row_bytes = k * formats::dtype_bits(dtype) / 8;
  QD_TRY_STATUS(check_group_size(k, group_size));
  if (static_cast<int64_t>(weight.size()) != rows * row_bytes)
    return make_error(ErrorCode::kInvalidArgument, "expected {} bytes for {}, found {}", rows * row_bytes,
                      formats::shape_text(shape), weight.size());
  W4Tensor result;
  result.shape.assign(shape.begin(), shape.end());
  result.codes.resize(static_cast<size_t>(rows * k));
  result.scales.resize(static_cast<size_t>(rows * scales_per_row(k, group_size)));
  result.packed.resize(static_cast<size_t>(rows * words_per_row(k)));
  std::vector<float> x(static_cast<size_t>(k));
  for (int64_t row = 0; row < rows; ++row) {
    widen_row(weight.data() + row * row_bytes, dtype, k, x.data());
    if (const int64_t bad = first_not_finite(x); bad >= 0)
      return make_error(ErrorCode::kInvalidData, "element [{}, {}] is {}: expected finite weights", row, bad, x[bad]);
    int8_t* codes = result.codes.data() + row * k;
    quantize_row(x, group_size, quotient, codes, result.scales.data() + row * scales_per_row(k, group_size));
    pack_row({codes, static_cast<size_t>(k)}, result.packed.data() + row * words_per_row(k));
  }
  return result;
}

}  // namespace quadrille::quantize
