// SPDX-License-Identifier: Apache-2.0
// One tensor-parallel rank of an engine of the stress test: half of a layer of Qwen3-30B-A3B with a shared expert whose
// cut goes through a group, its streams, workspace and outputs.
#pragma once

#include <array>
#include <vector>

#include "device_step/random_delays.h"
#include "device_step/step_data.h"
#include "parallel/device_communicator.h"

namespace quadrille::testing {

// Experts [first_expert, first_expert + experts) of the given width, as tensor-parallel rank `rank` of `ranks` has
// them.
moe::DeviceMlp make_shard(const kernels::DeviceTable& table, int64_t experts, int64_t width, int64_t first_expert,
                          int rank, int ranks, Memory* memory, device::Stream stream);
inline constexpr int64_t kSharedWidth = 640;

class RankEngine {
 public:
  // On the calling thread's GPU. `communicator` has two ranks; its collectives run on `main`. Both outlive the object.
  RankEngine(parallel::DeviceCommunicator* communicator, device::Stream main);
  ~RankEngine();
  RankEngine(const RankEngine&) = delete;
  RankEngine& operator=(const RankEngine&) = delete;

  void name_streams(RandomDelays* delays) const;
  // Enqueues round `number` with input number % kVersions; its rows go to place number % kInFlight.
  Status enqueue(int number);
  // Waits for both streams.
  Status drain();
  std::vector<uint16_t> result(int number) const;
  uint32_t status();

  static constexpr int kInFlight = 6;

 private:
  const kernels::DeviceTable& table_;
  device::Stream main_;
  device::OwnedStream side_;
  device::OwnedEvent begins_, ends_;
  PoolMemory memory_;
  moe::DeviceMoeLayer layer_;
  std::array<StepInput, kVersions> inputs_;
  device::Buffer workspace_, out_, status_;
  device::PinnedBuffer results_;
};

}  // namespace quadrille::testing
