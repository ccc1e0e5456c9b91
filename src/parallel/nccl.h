// SPDX-License-Identifier: Apache-2.0
// Collectives between GPUs over NCCL, which is opened at run time: no build and no program depends on it. Works with
// rank threads of one process and with rank processes alike.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/peer_ranks.h"

namespace quadrille::parallel {

// How messages of up to 256 KiB are reduced.
enum class SmallReduction {
  kAuto,     // one shot over peer memory (peer_ranks.h) where all ranks reach each other, else over NCCL
  kOneShot,  // an error where they do not
  kNccl,
};

struct NcclOptions {
  SmallReduction small = SmallReduction::kAuto;
  PeerOptions peers;
  // Received parts wait here for their reduction; longer vectors go through in pieces. At least 1 KiB a rank.
  size_t scratch_bytes = size_t{8} << 20;
  // Folder or file of libnccl.so.2; "" looks where the system looks, in the CUDA toolkit and in Python packages.
  std::string library;
};

// Collective over `host` (which must outlive the object): each rank with the GPU of its own, `ordinal`, which becomes
// the calling thread's. Scratch memory is taken and released in the order of `stream`. Errors: kUnsupported on every
// rank when one of them has no GPU or no NCCL (names them), kLostRank, kIo.
Result<std::unique_ptr<DeviceCommunicator>> nccl_communicator(Communicator& host, int ordinal, device::Stream stream,
                                                              const NcclOptions& options = {});

// Of one rank: what nccl_communicator returns there, without NCCL.
std::unique_ptr<DeviceCommunicator> single_device_communicator();

}  // namespace quadrille::parallel
