// SPDX-License-Identifier: Apache-2.0
// The closed list as the layers above see it, and the choice of a tile. Any choice gives the same bits.
#include <algorithm>

#include "kernels/cuda/kernels.h"

namespace quadrille::kernels::cuda {
namespace {

// In the order of kTileShapes (config.h); dispatch.cu asserts it.
constexpr GemmConfig kConfigs[] = {
    {"64x8", 64, 8, 4, true},    {"64x16", 64, 16, 4, true},      {"64x32", 64, 32, 3, true},
    {"64x64", 64, 64, 3, false}, {"128x128", 128, 128, 1, false},
};

}  // namespace

std::span<const GemmConfig> w4a8_configs() {
  return kConfigs;
}

// The smallest tile that holds the rows of an average expert that has any: while weights bound the time, a second token
// tile of an expert reads them again. From 64 rows on the large tile does the most operations a byte.
int32_t choose_w4a8(int64_t n, int64_t k, int64_t num_experts, int64_t num_rows, Numerics numerics,
                    int64_t group_size) {
  (void)n, (void)k, (void)numerics, (void)group_size;
  const int64_t hit = std::max<int64_t>(1, std::min(num_experts, num_rows));
  const int64_t mean = (num_rows + hit - 1) / hit;
  const int32_t last = static_cast<int32_t>(std::size(kConfigs)) - 1;
  for (int32_t i = 0; i < last; ++i) {
    if (mean <= kConfigs[i].tokens) return i;
  }
  return last;
}

}  // namespace quadrille::kernels::cuda
