// SPDX-License-Identifier: Apache-2.0
// The routing inputs of a case on the host: router logits that lead to the wanted pattern, or ids and weights.
#pragma once

#include <vector>

#include "core/thread_pool.h"
#include "device/conformance_cases.h"

namespace quadrille::testing {

// Row t belongs to the token with key t.
struct LayerRoutes {
  std::vector<float> logits;  // [tokens, experts]; empty where the input is ids
  std::vector<int32_t> ids;   // [tokens, top_k] experts of the router; with logits: what the CPU's router makes of them
  std::vector<float> weights;          // [tokens, top_k]
  std::vector<float> correction_bias;  // [experts] or empty
};

LayerRoutes make_routes(const LayerSpec& spec, ThreadPool* pool);

}  // namespace quadrille::testing
