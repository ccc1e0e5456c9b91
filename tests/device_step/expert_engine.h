// SPDX-License-Identifier: Apache-2.0
// One rank of a grid (tests/device/grid_ranks.h) of an engine of the stress test: its experts of a layer of
// Qwen3-30B-A3B, cut over tensor-parallel ranks where there are some, a shared expert, its own tokens, streams, memory.
#pragma once

#include <array>
#include <vector>

#include "device/grid_ranks.h"
#include "device_step/random_delays.h"
#include "device_step/step_data.h"

namespace quadrille::testing {

class ExpertEngine {
 public:
  // On the calling thread's GPU; collective over the ranks. `all_tokens` of the input, kTokens at most, are dealt out
  // unevenly. Everything that is passed outlives the object.
  ExpertEngine(parallel::Communicator& host, const GridShape& shape, GridRank& ranks, int64_t all_tokens,
               device::Stream main);
  ~ExpertEngine();
  ExpertEngine(const ExpertEngine&) = delete;
  ExpertEngine& operator=(const ExpertEngine&) = delete;

  void name_streams(RandomDelays* delays) const;
  // Enqueues round `number` with input number % kVersions; its rows go to place number % kInFlight.
  Status enqueue(int number);
  // Waits for both streams.
  Status drain();
  // The rows of this rank's tokens.
  std::vector<uint16_t> result(int number) const;
  uint32_t status();

  static constexpr int kInFlight = 6;

 private:
  void make_layer(const GridShape& shape);
  moe::DevicePlacement make_placement(int expert_rank, int expert_ranks);
  int64_t first_token() const;
  int64_t own_tokens() const;
  size_t rows_bytes() const { return static_cast<size_t>(own_tokens() * kHidden) * sizeof(uint16_t); }
  size_t place(int number) const { return static_cast<size_t>(number % kInFlight) * rows_bytes(); }

  const kernels::DeviceTable& table_;
  const int number_;  // among all ranks
  GridRank& ranks_;
  device::Stream main_;
  device::OwnedStream side_;
  device::OwnedEvent begins_, ends_;
  PoolMemory memory_;
  moe::DeviceMoeLayer layer_;
  std::vector<int64_t> rank_tokens_;
  moe::DevicePlacement placement_;
  moe::ExpertRegion region_;
  std::array<StepInput, kVersions> inputs_;
  device::Buffer workspace_, out_, status_;
  device::PinnedBuffer results_;
};

}  // namespace quadrille::testing
