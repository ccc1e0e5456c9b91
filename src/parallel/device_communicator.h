// SPDX-License-Identifier: Apache-2.0
// The collectives of communicator.h over device memory: the same names, order of additions and rules for sizes, with
// device pointers and a stream. nccl.h makes one from a communicator of the host. Called by the device layers.
#pragma once

#include <cstddef>
#include <span>

#include "core/result.h"
#include "device/handles.h"

namespace quadrille::parallel {

class PeerRanks;

// Every function enqueues on `stream` and returns: nothing waits, nothing allocates, all may be captured into a graph.
// Counts are known to the host (every rank knows what it sends and receives). One thread at a time; all collectives of
// an object share its scratch memory, so they run on one stream or on streams that are ordered by events.
// Errors: kLostRank as in communicator.h, also on every later call; kInvalidArgument; kIo when the library below fails.
// A rank that is lost while work is queued ends that work without a result: ask check() after waiting for the stream.
class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual const char* body() const = 0;  // "single", "nccl"

  // In place, ((r0 + r1) + r2) + ...; NaN comes out canonical where there are at least two ranks.
  virtual Status all_reduce_sum(float* data, size_t count, device::Stream stream) = 0;
  virtual Status all_reduce_max(float* data, size_t count, device::Stream stream) = 0;
  // `mine` may be its own place inside of `all`.
  virtual Status all_gather(const void* mine, size_t bytes, void* all, device::Stream stream) = 0;
  virtual Status all_gather_v(const void* mine, std::span<const size_t> bytes, void* all, device::Stream stream) = 0;
  virtual Status reduce_scatter_sum(const float* in, std::span<const size_t> counts, float* out,
                                    device::Stream stream) = 0;
  virtual Status all_to_all_v(const void* send, std::span<const size_t> send_bytes, void* recv,
                              std::span<const size_t> recv_bytes, device::Stream stream) = 0;
  virtual Status broadcast(void* data, size_t bytes, int root, device::Stream stream) = 0;
  // The work behind it begins when every rank's stream has come so far.
  virtual Status barrier(device::Stream stream) = 0;

  // Whether all ranks are there and the library below has met no error so far.
  virtual Status check() = 0;
  // Collective, once: the orderly end, after the last call and its streams. An object that is destroyed without it
  // leaves memory that its peers may still use to the end of the process.
  virtual Status close() { return {}; }
  // The ranks as they reach each other's memory; null where they do not.
  virtual PeerRanks* peers() { return nullptr; }

 protected:
  DeviceCommunicator(int rank, int size) : rank_(rank), size_(size) {}

 private:
  int rank_;
  int size_;
};

}  // namespace quadrille::parallel
