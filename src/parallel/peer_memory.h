// SPDX-License-Identifier: Apache-2.0
// A region of device memory on every rank of one host, reachable from every rank's GPU: ranks that are threads use
// plain addresses, ranks that are processes map each other's memory. Called by peer_ranks.cpp and by layers whose ranks
// read each other's results.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/result.h"
#include "device/peer.h"
#include "parallel/communicator.h"

namespace quadrille::parallel {

class PeerMemory {
 public:
  // Collective over `host`, which must outlive the object; every rank passes the same `bytes` and a GPU of its own or
  // (tests) one that it shares. The memory is zero. Kernels that use it run on `stream` or on streams that are ordered
  // before it when the object ends. Waits for the device. Errors: kUnsupported on every rank where one rank is on
  // another host or cannot reach another's memory (the rank that found it says which); kCapacity, kLostRank.
  static Result<std::unique_ptr<PeerMemory>> create(Communicator& host, int ordinal, size_t bytes,
                                                    device::Stream stream);
  // Not collective. Waits for the stream and unmaps; what other processes may still use stays until this one ends.
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // The region of `rank`, as this rank's GPU reaches it; 256-byte aligned.
  std::byte* at(int rank) const { return regions_[static_cast<size_t>(rank)]; }
  size_t bytes() const { return bytes_; }

  // Collective, once: the orderly end. All ranks wait for their streams, then all unmap, then all release.
  Status close();

 private:
  PeerMemory(Communicator& host, size_t bytes, device::Stream stream) : host_(host), bytes_(bytes), stream_(stream) {}
  struct Card;
  Status map(std::span<const Card> cards, int ordinal);
  Status open_handles(std::span<const Card> cards);

  Communicator& host_;
  size_t bytes_;
  device::Stream stream_;
  std::shared_ptr<device::PeerBuffer> own_;
  std::vector<std::shared_ptr<device::PeerBuffer>> of_threads_;  // kept alive while this rank may write there
  std::vector<device::PeerMapping> of_processes_;
  std::vector<std::byte*> regions_;
  bool exported_ = false;  // another process has mapped the own region
};

}  // namespace quadrille::parallel
