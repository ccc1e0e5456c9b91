// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers of the sampler: those that the device draws with.
#pragma once

#include <array>
#include <cstdint>

#include "numerics/sampling.h"

namespace quadrille::engine {

using numerics::uniform_draw;

constexpr std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const numerics::PhiloxWords words =
      numerics::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

}  // namespace quadrille::engine
