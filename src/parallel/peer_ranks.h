// SPDX-License-Identifier: Apache-2.0
// Ranks of one host that speak through each other's device memory: the one-shot reduction of small messages and the
// barrier, enqueued on a stream and captured into graphs like any kernel. Called by the device communicators and by
// layers that read their peers' results.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>

#include "core/result.h"
#include "device/device.h"
#include "kernels/api/peer_table.h"
#include "parallel/communicator.h"
#include "parallel/peer_memory.h"

namespace quadrille::parallel {

struct PeerOptions {
  // A kernel that waits longer for a peer gives up, and check() says so. For ranks that nobody knows to be lost: those
  // that are end the wait at once. Longer than any pause that ranks may take from each other.
  std::chrono::milliseconds patience{120'000};
};

class PeerRanks {
 public:
  static constexpr size_t kMostFloats = static_cast<size_t>(kernels::kOneShotFloats);

  // Collective over `host`, which must outlive the object; `ordinal` becomes the calling thread's GPU. Tries one sum
  // and compares it before it says that peer memory works. Errors on every rank: kUnsupported (other hosts, no peer
  // access, a sum that came out wrong), kCapacity, kLostRank.
  static Result<std::unique_ptr<PeerRanks>> create(Communicator& host, int ordinal, device::Stream stream,
                                                   const PeerOptions& options = {});
  // Not collective: queued calls end without a result. After close() nothing is left to do.
  ~PeerRanks();
  PeerRanks(const PeerRanks&) = delete;
  PeerRanks& operator=(const PeerRanks&) = delete;

  int rank() const { return host_.rank(); }
  int size() const { return host_.size(); }

  // In place, `count` at most kMostFloats; the rules of DeviceCommunicator (device_communicator.h).
  Status all_reduce(float* data, size_t count, bool takes_max, device::Stream stream);
  // What any rank wrote before it can be read by kernels behind it, in every rank's memory.
  Status barrier(device::Stream stream);

  // Collective: more memory that all ranks reach.
  Result<std::unique_ptr<PeerMemory>> share(size_t bytes);
  // For other kernels that wait for peers; valid as long as this object.
  kernels::PeerWait wait() const;
  const kernels::PeerTable& table() const { return *table_; }

  // Ask after waiting for a stream: kLostRank when a rank was lost, kIo when a kernel gave up; from then on always.
  Status check() const;
  // Collective, once: the orderly end.
  Status close();

 private:
  // Page-locked words that kernels look at. Those who set them hold them, too.
  struct Alarm {
    device::PinnedBuffer memory;
    kernels::PeerAlarm* get() const { return static_cast<kernels::PeerAlarm*>(memory.get()); }
    void ring() const;
  };
  PeerRanks(Communicator& host, int ordinal, device::Stream stream, const PeerOptions& options)
      : host_(host), ordinal_(ordinal), stream_(stream), patience_(options.patience) {}
  Status try_sum();

  Communicator& host_;
  int ordinal_;
  device::Stream stream_;
  std::chrono::nanoseconds patience_;
  const kernels::PeerTable* table_ = nullptr;
  std::shared_ptr<Alarm> alarm_;
  std::unique_ptr<PeerMemory> memory_;
};

}  // namespace quadrille::parallel
