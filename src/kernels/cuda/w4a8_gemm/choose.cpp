// SPDX-License-Identifier: Apache-2.0
// The closed list as the layers above see it, and the choice of a tile. Any choice gives the same bits.
#include <algorithm>

#include "kernels/cuda/kernels.h"

namespace quadrille::kernels::cuda {
namespace {

// In the order of kTileShapes (config.h); dispatch.cu asserts it.
constexpr GemmConfig kConfigs[] = {
    {"64x8", 64, 8, 4, true},
    {"64x16", 64, 16, 4, true},
    {"64x32", 64, 32, 3, true},
    {"64x64", 64, 64, 3, false},
    {"128x128", 128, 128, 1, false},
    // The shared form (split_plan.h): so many warpgroups share an item's records.
    {"64x8/4", 64, 8, 2, true},
    {"64x8/8", 64, 8, 2, true},
    {"64x8/16", 64, 8, 2, true},
    {"64x16/4", 64, 16, 1, true},
    {"64x16/8", 64, 16, 1, true},
    {"64x16/16", 64, 16, 1, true},
};
constexpr int32_t kLastPlain = 4;
constexpr int32_t kFirstOf8 = 5, kFirstOf16 = 8;

// What a grid should fill. That of H100 and H200 SXM; elsewhere a choice is less good, no result is other.
constexpr int64_t kMultiprocessors = 132;

// Of the three shared forms from `first` on the one that spreads `items` furthest over no more than one CTA a
// multiprocessor; -1: there are more items than fit the GPU at once, and the plain form does as well.
int32_t shared_form(int32_t first, int64_t items, int64_t k, int64_t group_size) {
  const bool two_fit = first == kFirstOf8 && group_size != 32 && group_size != 64;  // SplitPlan::kCtas
  if (items > (two_fit ? 2 : 1) * kMultiprocessors) return -1;
  const int64_t stages = (k + 511) / 512;
  int32_t chosen = first;
  for (int32_t more = 1; more <= 2; ++more) {
    if (items << more <= kMultiprocessors && int64_t{1} << more <= stages) chosen = first + more;
  }
  return chosen;
}

}  // namespace

std::span<const GemmConfig> w4a8_configs() {
  return kConfigs;
}

// The smallest tile that holds the rows of an average expert that has any: while weights bound the time, a second token
// tile of an expert reads them again. From 64 rows on the large tile does the most operations a byte.
int32_t choose_w4a8(int64_t n, int64_t k, int64_t num_experts, int64_t num_rows, Numerics numerics,
                    int64_t group_size) {
  const int64_t hit = std::max<int64_t>(1, std::min(num_experts, num_rows));
  const int64_t mean = (num_rows + hit - 1) / hit;
  const int64_t row_tiles = (n + 63) / 64;
  if (numerics == Numerics::kExact && mean <= 64) {
    const int32_t first = mean <= 8 ? kFirstOf8 : kFirstOf16;
    const int64_t items = hit * row_tiles * ((mean + kConfigs[first].tokens - 1) / kConfigs[first].tokens);
    const int32_t chosen = shared_form(first, items, k, group_size);
    if (chosen >= 0) return chosen;
  }
  for (int32_t i = 0; i < kLastPlain; ++i) {
    if (mean <= kConfigs[i].tokens) return i;
  }
  return kLastPlain;
}

}  // namespace quadrille::kernels::cuda
