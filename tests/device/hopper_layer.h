// SPDX-License-Identifier: Apache-2.0
// What the CPU table `hopper` gives for named tokens of a case.
#pragma once

#include <vector>

#include "device/cpu_stack.h"
#include "device/layer_routes.h"

namespace quadrille::testing {

StackSpec gate_up_stack(const LayerSpec& spec, bool shared);
StackSpec down_stack(const LayerSpec& spec, bool shared);

// Rows of hidden() bf16 codes for the tokens with these keys, by moe::run_layer with the table `hopper`; only the
// experts that these tokens use are prepared.
std::vector<uint16_t> hopper_layer(const LayerSpec& spec, const LayerRoutes& routes, const std::vector<int64_t>& keys,
                                   ThreadPool* pool);

// 0, 1, ... tokens - 1.
std::vector<int64_t> keys_in_order(int64_t tokens);

}  // namespace quadrille::testing
