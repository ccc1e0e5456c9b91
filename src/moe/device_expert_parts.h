// SPDX-License-Identifier: Apache-2.0
// What the layer of expert-parallel ranks is checked for before any work, and where its memory lies in the workspace
// and in the region. Used by device_expert_parallel.cpp.
#pragma once

#include "moe/device_expert_parallel.h"
#include "moe/device_workspace.h"

namespace quadrille::moe {

// Bytes of a token as it travels, and of a row that comes back.
int64_t record_pitch(const DeviceMoeLayer& layer);
int64_t row_bytes(const DeviceMoeLayer& layer);
bool has_experts(const DeviceMoeLayer& layer);
// The layer as the checks and plans of one rank know it: some experts behind a map.
DeviceMoeLayer mapped(const DeviceMoeLayer& layer);

struct ExpertParts {
  LayerParts layer;  // as for one rank with all ranks' tokens
  Part act_scale;    // [own tokens] fp32
  Part ids;          // [all routes] experts here
  // Without a region:
  Part records;         // [all tokens, pitch]
  Part sent, received;  // [all routes, hidden]; [ranks, own routes, hidden]
  size_t total = 0;
};
ExpertParts plan_expert_parts(const DeviceMoeLayer& layer, int64_t all, int64_t own, int64_t ranks, bool over_region);

Status check_region(const DeviceMoeLayer& layer, const ExpertCall& experts, int64_t all);
// Pointers of the batch, the placement and the weights.
Status check_memory(const DeviceMoeLayer& layer, const DeviceBatch& batch, const ExpertCall& experts);

}  // namespace quadrille::moe
