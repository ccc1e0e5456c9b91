// SPDX-License-Identifier: Apache-2.0
// The kernels between GPUs of one host, beside device_table.h and with its rules: they enqueue on the given stream,
// never allocate or synchronise, and may be captured into a graph.
#pragma once

#include "core/result.h"
#include "device/handles.h"
#include "kernels/api/peer_problems.h"

namespace quadrille::kernels {

struct PeerTable {
  void (*one_shot_reduce)(const OneShotReduce&, device::Stream);
  void (*barrier)(const PeerBarrier&, device::Stream);
  void (*pack_tokens)(const PackTokens&, device::Stream);
  void (*local_routes)(const LocalRoutes&, device::Stream);
  void (*place_tokens)(const PlaceTokens&, device::Stream);
  void (*return_rows)(const ReturnRows&, device::Stream);
  void (*combine_ranks)(const CombineRanks&, device::Stream);
  // Has the thread's GPU load the code of all of these: loading at the first launch may wait for a running kernel,
  // which may wait for the rank that loads.
  Status (*load)();
};

// The table of this build; kUnsupported with the reason in a build without CUDA.
Result<const PeerTable*> peer_table();

}  // namespace quadrille::kernels
