// SPDX-License-Identifier: Apache-2.0
// Weights to 4-bit codes with one bf16 scale a group, and the packed words that checkpoints hold.
// The arithmetic is that of the compressed-tensors library, to the bit, in both of its roundings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/dtype.h"

namespace quadrille::quantize {

// How x / scale is rounded before it becomes an integer.
enum class Quotient {
  kF32,   // fp32 division, then nearest even: what the library does on a GPU; the smaller error
  kBf16,  // the quotient is rounded to bf16 first: what the library does on a CPU
};
const char* quotient_name(Quotient quotient);  // "f32", "bf16"

// Scales a row: K / group, one for group_size 0 (channel).
int64_t scales_per_row(int64_t k, int64_t group_size);
// I32 words a row: ceil(K / 8).
int64_t words_per_row(int64_t k);

// One row. scale_g = bf16(absmax_g / 7.5), 0 becomes 2^-7; code = rint(clamp(x / scale_g, -8, 7)), ties to even.
//   x       [K]      finite
//   codes   [K]      -8..7
//   scales  [K / group_size] bf16 bits
// K must be a multiple of group_size (0 = the whole row): QD_CHECK.
void quantize_row(std::span<const float> x, int64_t group_size, Quotient quotient, int8_t* codes, uint16_t* scales);

// codes [K] -> words [ceil(K/8)]: u = code + 8, element k in bits 4*(k%8) of word k/8; the nibbles behind K are 0.
void pack_row(std::span<const int8_t> codes, int32_t* words);
// The inverse: codes [K] from words [ceil(K/8)].
void unpack_row(const int32_t* words, std::span<int8_t> codes);

// `count` elements of type BF16, F16 or F32 at any address, widened to fp32 (exact). QD_CHECK for another type.
void widen_row(const std::byte* source, formats::DType dtype, int64_t count, float* destination);
// Index of the first element that is not finite, or -1.
int64_t first_not_finite(std::span<const float> x);

// A whole tensor in memory, [N,K] or a stack [E,N,K] (slice by slice), single-threaded: for tests and small tools.
struct W4Tensor {
  std::vector<int64_t> shape;
  std::vector<int8_t> codes;     // [..,N,K]
  std::vector<uint16_t> scales;  // [..,N,G] bf16 bits
  std::vector<int32_t> packed;   // [..,N,ceil(K/8)]
};
// Errors: kInvalidArgument for a rank other than 2 or 3, another dtype, a group size that does not divide K (names K
// and the legal values), kInvalidData for an element that is not finite (names its place).
Result<W4Tensor> quantize_tensor(std::span<const std::byte> weight, formats::DType dtype,
                                 std::span<const int64_t> shape, int64_t group_size, Quotient quotient);

// "32, 128, channel": the group sizes that a K permits.
std::string legal_group_sizes(int64_t k);
// Nothing, or an error (without the tensor's name) that says why `group_size` does not suit `k`. For group_size 0 any
// k does.
Status check_group_size(int64_t k, int64_t group_size);

}  // namespace quadrille::quantize
