// SPDX-License-Identifier: Apache-2.0
// The preparation of the `vllm` numerics step by step, byte for byte what that engine holds after loading, for weights
// of any rank ([N, K], [E, N, K]): leading dimensions are rows. Tests compare each step; exporters use them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "layout/w4_vllm_reordered.h"

namespace quadrille::prepare {

// uint4b8 words -> two's complement int4, in place (XOR 8 on every nibble; twice gives the first words again).
void int4_in_place(std::span<uint32_t> words);

// Two's complement words -> unified codes (1..7 become 8 - v), in place; its own inverse.
void unified_in_place(std::span<uint32_t> words);

// Scales of all rows: channel scale and e4m3 group scales, before and after the division by 8.
struct VllmScales {
  int64_t rows = 0;
  int64_t groups = 0;
  std::vector<float> channel_scale;        // [rows] max(max_g |s| / 448, 1 / (448 * 512))
  std::vector<float> channel_scale8;       // [rows] 8 times that
  std::vector<uint8_t> group_scale_e4m3;   // [rows, groups] E4(s / channel_scale)
  std::vector<uint8_t> group_scale8_e4m3;  // [rows, groups] E4(that / 8)
};
// scales [rows, groups] bf16. Error kInvalidData: a NaN or infinite scale, by row and group.
Result<VllmScales> split_scales(std::span<const uint16_t> scales, int64_t rows, int64_t groups);

// [count, 8] e4m3 codes of s8 * -8 ... s8 * -1 for each of `group_scale8`.
std::vector<uint8_t> scale_tables(std::span<const uint8_t> group_scale8);

// The table order of the grouped kernels: [E, N, G] group scales -> [E, G, N, 8].
std::vector<uint8_t> packed_scale_tables(std::span<const uint8_t> group_scale8, int64_t experts, int64_t n,
                                         int64_t groups);

// Weight bytes [rows, k]: E4(s8 * q), 0x00 where q = 0. words: [rows, k/8] two's complement; group_size 0: one group.
std::vector<uint8_t> weight_bytes(std::span<const uint32_t> words, std::span<const uint8_t> group_scale8, int64_t rows,
                                  int64_t k, int64_t group_size);

// Reordered words of one matrix (layout/w4_vllm_reordered.h); N a multiple of 16, K of 32, else kUnsupported.
Result<std::vector<uint32_t>> reorder(std::span<const uint32_t> words, int64_t n, int64_t k);

}  // namespace quadrille::prepare
