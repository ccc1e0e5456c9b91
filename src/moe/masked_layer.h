// SPDX-License-Identifier: Apache-2.0
// The experts of a layer over rows that others sent here, already quantised in 1 x 128 blocks (the masked layout of
// expert-parallel dispatch): GEMM1 `block`, activation, one scale a row, GEMM2 `exact` (docs/numerics.md section 4).
// The oracle of the device's run_masked_layer(). No routing and no combine: the sender does both.
#pragma once

#include <cstdint>

#include "core/result.h"
#include "moe/layer.h"

namespace quadrille::moe {

// Expert e has rows [0, masked_m[e]) of its max_m.
struct MaskedBatch {
  int64_t max_m = 0;
  const uint8_t* act = nullptr;       // [experts, max_m, hidden] e4m3
  const float* act_scale = nullptr;   // [experts, ceil(hidden / 128), max_m] finite, not negative
  const int32_t* masked_m = nullptr;  // [experts]
};

// out [experts, max_m, hidden] fp32: GEMM2 rows, rounded as the execution says. Rows behind masked_m are neither read
// nor written. Scratch comes from the execution's arena and stays taken. Errors: those of check_mlp; kUnsupported for
// numerics other than `exact` or experts that are not W4A8; kInvalidArgument for a masked_m outside of 0..max_m, by
// expert, and for more than 2^31 - 1 rows.
Status run_masked_experts(const GatedMlp& experts, const MaskedBatch& batch, const Execution& execution, float* out);

}  // namespace quadrille::moe
