// SPDX-License-Identifier: Apache-2.0
// The device layer where ranks hold different experts (docs/numerics.md section 6): tokens go to the ranks of their
// experts as FP8 codes with scales, GEMM2 rows come back and are combined in slot order on the token's rank, so the
// bits are those of one GPU. No count is read by the host: a call can be captured into a graph. Called by the decoder.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/api/peer_table.h"
#include "moe/device_layer.h"
#include "moe/placement.h"
#include "parallel/peer_memory.h"

namespace quadrille::moe {

// A placement as one rank's device needs it; device memory of the caller. It may be rewritten between two calls (an
// expert that moved), on the main stream.
struct DevicePlacement {
  const int32_t* local = nullptr;    // [ranks, num_experts]: local_experts()
  const int32_t* serving = nullptr;  // [num_experts]: placement.serving_ranks(rank)
};
// For tokens of each rank and every expert of the router: its slot on `rank` where `rank` serves it, else -1.
std::vector<int32_t> local_experts(const Placement& placement, int rank);

// Memory of every rank that all ranks reach: tokens that go out, which rows they became, the rows. Layers of one model
// run behind each other and share it; for layers of different shapes take the larger of each part.
struct ExpertRegionParts {
  size_t records = 0, slots = 0, rows = 0;  // bytes, multiples of 256
  size_t total() const { return records + slots + rows; }
};
ExpertRegionParts expert_region_parts(const DeviceMoeLayer& layer, int64_t max_rank_tokens);
struct ExpertRegion {
  const parallel::PeerMemory* memory = nullptr;  // of layer.ranks.expert->peers(); null: collectives move everything
  ExpertRegionParts parts;                       // equal on all ranks
};

// What a call needs beside that of one rank.
struct ExpertCall {
  const kernels::PeerTable& table;
  DevicePlacement placement;
  // [expert ranks] tokens of each; zero is fine. Equal on all ranks; that of this rank is batch.num_tokens.
  std::span<const int64_t> rank_tokens;
  ExpertRegion region;
};

// The layer as a rank has it: rule.num_experts are the router's, layer.experts those in the slots of this rank (none is
// fine), layer.expert_map is not used. Tensor-parallel ranks inside of an expert rank all pass the same batch.
Status can_run_expert_parallel(const DeviceMoeLayer& layer, std::span<const int64_t> rank_tokens);
// For calls of up to max_rank_tokens on each rank, with a region or without.
size_t expert_workspace_bytes(const DeviceMoeLayer& layer, int64_t max_rank_tokens, bool over_region);

// Collective over layer.ranks.expert, on the main stream; as run_device_layer otherwise. Every rank calls it, also one
// without tokens (its batch's pointers may be null). Errors: those of run_device_layer and of the communicator.
Status run_expert_parallel_layer(const kernels::DeviceTable& table, const DeviceMoeLayer& layer,
                                 const DeviceBatch& batch, const ExpertCall& experts, void* workspace,
                                 size_t workspace_size, const DeviceStreams& streams, uint32_t* status,
                                 const DeviceLayerOptions& options = {});

}  // namespace quadrille::moe
