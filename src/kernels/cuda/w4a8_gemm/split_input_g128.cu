// SPDX-License-Identifier: Apache-2.0
// Products of few tokens whose CTAs make their codes themselves, or gather them.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/w4a8_gemm/split_launch.cuh"

namespace quadrille::kernels::cuda {
namespace {

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

void check_norm(const DeviceW4A8Gemm& p, const DeviceAddNorm& norm) {
  QD_CHECK(fits_gemm_norm(p.numerics, p.group_size, norm.num_rows, p.k,
                          norm.combine.rows != nullptr ? norm.combine.top_k : 0),
           "a norm that fits a CTA");
  QD_CHECK(p.list.tiles == nullptr && p.list.num_rows == norm.num_rows && norm.width == p.k, "a norm of these rows");
  QD_CHECK(norm.x != nullptr && norm.weight != nullptr && norm.rows == nullptr && norm.update_f32 == nullptr &&
               norm.normed == nullptr && norm.act == nullptr,
           "a norm of whole rows that leaves nothing but sums");
  const bool combines = norm.combine.rows != nullptr;
  QD_CHECK(!combines || (norm.update == nullptr && norm.routes_are_older && norm.combine.shared == nullptr &&
                         norm.combine.width == norm.width),
           "a combine whose routes are older than the predecessor, without a shared expert");
  QD_CHECK((!combines && norm.update == nullptr) || (norm.x_out != nullptr && norm.x_out != norm.x),
           "a place for the sums apart from x, which other CTAs still read");
  QD_CHECK(on_16_bytes(norm.x) && on_16_bytes(norm.x_out) && on_16_bytes(norm.update) && on_16_bytes(norm.weight) &&
               on_16_bytes(norm.combine.rows),
           "rows on 16 bytes");
}

}  // namespace

void split_gemm_with_input(const DeviceW4A8Gemm& p, const GemmArguments& args, device::Stream stream) {
  QD_CHECK(gathers_gemm_input(p.numerics, p.group_size) && p.block_scale == nullptr &&
               kTileShapes[p.config].tokens == 8 && p.k % 8 == 0,
           "an input that the product makes: exact, groups of 128 or one scale a channel, a tile of 8 tokens");
  const int ctas = std::max(1, kTileShapes[p.config].k_ctas);
  SplitArguments in{};
  in.x = p.x;
  in.k = static_cast<int32_t>(p.k);
  in.source_row = p.source_row;
  in.source_divisor = static_cast<int32_t>(p.source_divisor);
  if (p.norm != nullptr) {
    check_norm(p, *p.norm);
    in.norm = *p.norm;
    return launch_split<8, 128, SplitInput::kNormed>(p, args, in, ctas, stream);
  }
  if (p.x != nullptr) {
    const int64_t rows = p.list.tiles != nullptr ? kMostInputRows : p.list.num_rows;
    QD_CHECK(fits_gemm_input(p.numerics, p.group_size, rows, p.k) && on_16_bytes(p.x), "rows that fit a CTA");
    return launch_split<8, 128, SplitInput::kRows>(p, args, in, ctas, stream);
  }
  QD_CHECK(p.list.tiles != nullptr && p.source_divisor >= 1, "tiles whose slots name their tokens");
  launch_split<8, 128, SplitInput::kGathered>(p, args, in, ctas, stream);
}

}  // namespace quadrille::kernels::cuda
