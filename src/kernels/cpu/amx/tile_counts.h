// SPDX-License-Identifier: Apache-2.0
// What a test asks of the amx unit: how often tiles were used, which the count of calls does not say.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cpu {

struct TileCounts {
  uint64_t (*num_shares)();  // shares of the W4A8 product that ran on tiles
  int64_t rows_exact;        // rows of an expert from which on tiles are used, by numerics
  int64_t rows_vllm;
};

extern const TileCounts kAmxTileCounts;

}  // namespace quadrille::kernels::cpu
