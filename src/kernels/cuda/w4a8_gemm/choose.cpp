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
    // `exact` with groups of 128 or one scale a channel (wide_plan.h); others take it in parts.
    {"128x160", 128, 160, 1, false},
};
constexpr int32_t kLastPlain = 4;
constexpr int32_t kFirstOf8 = 5, kFirstOf16 = 8;
constexpr int32_t kWide = 11;

// What a grid should fill. That of H100 and H200 SXM; elsewhere a choice is less good, no result is other.
constexpr int64_t kMultiprocessors = 132;

// The shared form for `items` of 8 or 16 tokens; -1: the plain form does as well. Measured on an H100, us in a chain:
// 32 items of 4,096 k 5.0 with four CTAs each, 5.2 with two, 8.8 plain; 80 of 2,048 k 5.4 with two, 6.1 plain; 192 of
// 2,048 k 8.7 with one, 8.3 plain; at 16 tokens two 5.8, four 9.0.
int32_t shared_form(int64_t tokens, int64_t items, int64_t k, int64_t group_size) {
  const int64_t stages = (k + 511) / 512;
  const bool two_fit = tokens == 8 && group_size != 32 && group_size != 64;  // SplitPlan::kCtas
  const int64_t most = two_fit ? kMultiprocessors * 5 / 4 : kMultiprocessors;
  const int32_t first = tokens == 8 ? kFirstOf8 : kFirstOf16;
  if (tokens == 8 && stages >= 4 && items * 4 <= kMultiprocessors) return first + 2;
  return stages >= 2 && items * 2 <= most ? first + 1 : -1;
}

// One matrix alone is a few waves of pairs of CTAs with 256 out features, so the better of the large tiles is the one
// whose last wave is fuller. Measured on an H100, ns an item: 1,980 + 610 a record at 128 tokens, 2,200 + 659 at 160.
// Among many experts the waves are many, and the tiles have loops for few tokens.
bool wide_is_faster(int64_t n, int64_t k, int64_t hit, int64_t num_rows) {
  if (hit > 1) return true;
  const auto time = [&](int64_t tokens, int64_t item_ns, int64_t record_ns) {
    const int64_t items = (num_rows + tokens - 1) / tokens * ((n + 255) / 256);
    const int64_t pairs = kMultiprocessors / 2;
    return (items + pairs - 1) / pairs * (item_ns + record_ns * ((k + 127) / 128));
  };
  return time(160, 2200, 659) <= time(128, 1980, 610);
}

}  // namespace

std::span<const GemmConfig> w4a8_configs() {
  return kConfigs;
}

// The smallest tile that holds the rows of an average expert that has any: while weights bound the time, a second token
// tile of an expert reads them again. From 64 rows on the large tiles do the most operations a byte, and of these the
// wide one converts a weight for the most tokens; it multiplies no more of a token tile than is there.
int32_t choose_w4a8(int64_t n, int64_t k, int64_t num_experts, int64_t num_rows, Numerics numerics,
                    int64_t group_size) {
  const int64_t hit = std::max<int64_t>(1, std::min(num_experts, num_rows));
  const int64_t mean = (num_rows + hit - 1) / hit;
  const int64_t row_tiles = (n + 63) / 64;
  if (numerics == Numerics::kExact && mean <= 16) {
    const int32_t chosen = shared_form(mean <= 8 ? 8 : 16, hit * row_tiles, k, group_size);
    if (chosen >= 0) return chosen;
  }
  // A narrow matrix: more and smaller items, as long as they run at once (64 rows by 2,048 x 4,096: 9.3 us for 10.7).
  if (hit == 1 && mean <= 64 && row_tiles * ((mean + 15) / 16) <= kMultiprocessors) return mean <= 8 ? 0 : 1;
  for (int32_t i = 0; i < kLastPlain; ++i) {
    if (mean <= kConfigs[i].tokens) return i;
  }
  const bool one_group_a_record = group_size != 32 && group_size != 64;
  const bool served = numerics == Numerics::kExact && one_group_a_record;
  return served && wide_is_faster(n, k, hit, num_rows) ? kWide : kLastPlain;
}

}  // namespace quadrille::kernels::cuda
