// SPDX-License-Identifier: Apache-2.0
// Products of few tokens whose CTAs make their codes themselves, or gather them.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/w4a8_gemm/resident.cuh"
#include "kernels/cuda/w4a8_gemm/split_launch.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kMostResidentRecords = kMostInputValues / layout::kRecordK;

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

template <SplitInput Input>
void launch_resident(const DeviceW4A8Gemm& p, const GemmArguments& args, const SplitArguments& in,
                     device::Stream stream) {
  using Plan = ResidentPlan<Input>;
  const auto kernel = w4a8_resident_kernel<Plan>;
  const int bytes = Plan::shared_bytes(args.k_records);
  constexpr int kMostBytes = Plan::shared_bytes(kMostResidentRecords);
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostBytes) != cudaSuccess) {
    check_launch("w4a8_gemm: shared memory");
  }
  const int64_t fit = std::min<int64_t>(Plan::kCtas, 233472 / (bytes + 2048));
  const int64_t items = num_items(p, args, Plan::kTokens, 1);
  const auto grid = static_cast<unsigned>(std::min(items, num_multiprocessors() * fit));
  if (grid == 0) return;
  launch_chained(kernel, grid, Plan::kThreads, static_cast<size_t>(bytes), native(stream), args, in);
  check_launch("w4a8_gemm, codes made");
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
  if (p.x != nullptr) {
    const bool has_tiles = p.list.tiles != nullptr;
    QD_CHECK(fits_gemm_input(p.numerics, p.group_size, has_tiles ? kMostInputRows : p.list.num_rows, p.k) &&
                 on_16_bytes(p.x),
             "rows that fit a CTA");
    if (has_tiles) return launch_resident<SplitInput::kRows>(p, args, in, stream);
    return launch_split<8, 128, SplitInput::kRows>(p, args, in, ctas, stream);
  }
  QD_CHECK(p.list.tiles != nullptr && p.source_divisor >= 1 && args.k_records <= kMostResidentRecords,
           "tiles whose slots name their tokens, and codes that fit a CTA");
  launch_resident<SplitInput::kGathered>(p, args, in, stream);
}

}  // namespace quadrille::kernels::cuda
