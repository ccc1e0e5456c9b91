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
// Both, in all their forms.
std::vector<const void*> one_shot_kernels();

}  // namespace quadrille::kernels::cuda
