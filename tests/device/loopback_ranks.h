// SPDX-License-Identifier: Apache-2.0
// Ranks that share one GPU, for tests of split layers on a machine with one: each rank is a thread with a stream of its
// own, one thread runs at a time, and a collective passes the turn on until all have come. Nothing on the device waits
// for another rank but by events, so that the calls of all ranks can be captured into one graph.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"
#include "device/must.h"
#include "kernels/api/device_table.h"
#include "parallel/device_communicator.h"

namespace quadrille::testing {

class LoopbackRanks {
 public:
  // Collectives of up to `most_floats` values. Memory is taken on `stream`, which outlives the object.
  LoopbackRanks(int size, size_t most_floats, device::Stream stream);
  ~LoopbackRanks();

  int size() const { return static_cast<int>(ranks_.size()); }
  parallel::DeviceCommunicator& communicator(int rank);
  device::Stream stream(int rank) const { return streams_[static_cast<size_t>(rank)].get(); }

  // Runs body(rank) for every rank; what it enqueues belongs on stream(rank) or on streams that it orders with it. It
  // all lies between two moments of `origin`, which may be in capture: what is there before comes first, what is
  // enqueued there later comes last. Runs follow each other on one origin. The first error.
  Status run(device::Stream origin, const std::function<Status(int)>& body);

 private:
  class Rank;
  // Two sets of buffers take turns: a rank is at most one collective ahead of another.
  struct Round {
    device::Buffer parts;  // [ranks, most_floats]
    std::vector<device::OwnedEvent> came, left;
  };

  Status run_threads(const std::function<Status(int)>& body);
  Status reduce(int rank, float* data, size_t count, bool takes_max, device::Stream stream);
  void pass_turn(std::unique_lock<std::mutex>& lock, int from);
  void await_turn(std::unique_lock<std::mutex>& lock, int rank);

  const kernels::DeviceTable& table_;
  const size_t most_floats_;
  std::vector<device::OwnedStream> streams_;
  std::vector<device::OwnedEvent> begins_, ends_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::array<Round, 2> rounds_;

  std::mutex mutex_;
  std::condition_variable turned_;
  int turn_ = 0;
  std::vector<bool> done_;       // of the run
  std::vector<int64_t> number_;  // collectives that each rank has entered in this run
};

}  // namespace quadrille::testing
