// SPDX-License-Identifier: Apache-2.0
// What this folder offers to the table of kernels between GPUs (peer_table.cpp). Contracts:
// kernels/api/peer_problems.h.
#pragma once

#include <vector>

#include "device/handles.h"
#include "kernels/api/peer_problems.h"

namespace quadrille::kernels::cuda {

void one_shot_reduce(const OneShotReduce& p, device::Stream stream);
void peer_barrier(const PeerBarrier& p, device::Stream stream);
void pack_tokens(const PackTokens& p, device::Stream stream);
void local_routes(const LocalRoutes& p, device::Stream stream);
void place_tokens(const PlaceTokens& p, device::Stream stream);
void return_rows(const ReturnRows& p, device::Stream stream);
void combine_ranks(const CombineRanks& p, device::Stream stream);

// The kernels of each file.
std::vector<const void*> one_shot_kernels();
std::vector<const void*> expert_rows_kernels();
std::vector<const void*> combine_ranks_kernels();

}  // namespace quadrille::kernels::cuda
