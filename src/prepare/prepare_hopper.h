// SPDX-License-Identifier: Apache-2.0
// Checkpoint matrices -> layout/w4_hopper64.h on the CPU: the oracle of the device preparation, byte for byte, and the
// way back.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "layout/w4_hopper64.h"
#include "prepare/prepare_w4.h"

namespace quadrille::prepare {

struct PreparedHopperW4 {
  kernels::Numerics numerics = kernels::Numerics::kExact;
  layout::LayoutTag tag{"", 0};
  layout::W4Hopper64 map{};
  std::vector<uint8_t> weights;      // map.num_bytes()
  std::vector<float> channel_scale;  // vllm: [map.padded_n()], 0 behind n
};

// One part keeps its order; two parts (gate, up) of equal n are interleaved eight and eight. Errors as prepare_w4.
Result<PreparedHopperW4> prepare_hopper_w4(std::span<const CanonicalW4> parts, kernels::Numerics numerics,
                                           ThreadPool* pool = nullptr);

// The reverse: `num_parts` canonical matrices (uint4b8; scales empty for vllm).
std::vector<CanonicalCopy> unprepare_hopper(const PreparedHopperW4& matrix, int num_parts);

}  // namespace quadrille::prepare
