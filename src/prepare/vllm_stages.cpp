// SPDX-License-Identifier: Apache-2.0
// The vllm preparation over whole tensors; every value comes from numerics/group_scale.h and numerics/int4.h.
#include "prepare/vllm_stages.h"

#include "core/check.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "numerics/int4.h"

namespace quadrille::prepare {

void int4_in_place(std::span<uint32_t> words) {
  for (uint32_t& word : words) word = numerics::flip_uint4b8_word(word);
}

void unified_in_place(std::span<uint32_t> words) {
  for (uint32_t& word : words) word = numerics::unified_of_int4_word(word);
}

Result<VllmScales> split_scales(std::span<const uint16_t> scales, int64_t rows, int64_t groups) {
  QD_CHECK(static_cast<int64_t>(scales.size()) == rows * groups, "scales must be [rows, groups]");
  VllmScales out;
  out.rows = rows;
  out.groups = groups;
  for (int64_t row = 0; row < rows; ++row) {
    float absmax = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      const uint16_t scale = scales[static_cast<size_t>(row * groups + g)];
      if ((scale & 0x7f80) == 0x7f80) {
        return make_error(ErrorCode::kInvalidData, "row {}, group {}: expected a finite scale, found bf16 0x{:04X}",
                          row, g, scale);
      }
      absmax = numerics::absmax_step(absmax, numerics::bf16_to_f32(scale));
    }
    const float channel = numerics::channel_scale_of_absmax(absmax);
    out.channel_scale.push_back(channel);
    out.channel_scale8.push_back(numerics::channel_scale8(channel));
    for (int64_t g = 0; g < groups; ++g) {
      const float scale = numerics::bf16_to_f32(scales[static_cast<size_t>(row * groups + g)]);
      const uint8_t code = numerics::group_scale_code(scale, channel);
      out.group_scale_e4m3.push_back(code);
      out.group_scale8_e4m3.push_back(numerics::group_scale8_code(code));
    }
  }
  return out;
}

std::vector<uint8_t> scale_tables(std::span<const uint8_t> group_scale8) {
  std::vector<uint8_t> out;
  out.reserve(group_scale8.size() * 8);
  for (const uint8_t scale : group_scale8) {
    for (int i = 0; i < 8; ++i) out.push_back(numerics::lut_code(scale, i));
  }
  return out;
}

std::vector<uint8_t> packed_scale_tables(std::span<const uint8_t> group_scale8, int64_t experts, int64_t n,
                                         int64_t groups) {
  QD_CHECK(static_cast<int64_t>(group_scale8.size()) == experts * n * groups, "group scales must be [E, N, G]");
  std::vector<uint8_t> transposed;
  transposed.reserve(group_scale8.size());
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t row = 0; row < n; ++row) {
        transposed.push_back(group_scale8[static_cast<size_t>((e * n + row) * groups + g)]);
      }
    }
  }
  return scale_tables(transposed);
}

std::vector<uint8_t> weight_bytes(std::span<const uint32_t> words, std::span<const uint8_t> group_scale8, int64_t rows,
                                  int64_t k, int64_t group_size) {
  QD_CHECK(k % 8 == 0 && static_cast<int64_t>(words.size()) == rows * k / 8, "words must be [rows, k / 8]");
  const int64_t width = group_size == 0 ? k : group_size;
  const int64_t groups = (k + width - 1) / width;
  QD_CHECK(static_cast<int64_t>(group_scale8.size()) == rows * groups, "group scales must be [rows, groups]");
  std::vector<uint8_t> out(static_cast<size_t>(rows * k));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < k; ++i) {
      const uint32_t word = words[static_cast<size_t>((row * k + i) / 8)];
      const int q = numerics::q_of_int4(numerics::nibble(word, static_cast<int>(i % 8)));
      out[static_cast<size_t>(row * k + i)] =
          numerics::vllm_weight_code(group_scale8[static_cast<size_t>(row * groups + i / width)], q);
    }
  }
  return out;
}

Result<std::vector<uint32_t>> reorder(std::span<const uint32_t> words, int64_t n, int64_t k) {
  if (n <= 0 || k <= 0 || n % layout::W4VllmReordered::kTileN != 0 || k % layout::W4VllmReordered::kTileK != 0) {
    return make_error(
        ErrorCode::kUnsupported,
        "the reordered layout has tiles of 16 x 32: N must be a multiple of 16 and K of 32, found [{}, {}]", n, k);
  }
  QD_CHECK(static_cast<int64_t>(words.size()) == n * k / 8, "words must be [n, k / 8]");
  std::vector<uint32_t> out(words.size());
  layout::export_vllm_reordered({n, k}, words.data(), out.data());
  return out;
}

}  // namespace quadrille::prepare
