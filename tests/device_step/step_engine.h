// SPDX-License-Identifier: Apache-2.0
// One engine of the stress test: its own streams, events, workspaces and outputs. A round prepares the small stack from
// the host, runs the large layer (with its shared expert on the side stream) and then the small layer on the weights of
// this round.
#pragma once

#include <array>
#include <vector>

#include "device_step/random_delays.h"
#include "device_step/step_data.h"

namespace quadrille::testing {

class StepEngine {
 public:
  explicit StepEngine(const StepData& data);
  ~StepEngine();
  StepEngine(const StepEngine&) = delete;
  StepEngine& operator=(const StepEngine&) = delete;

  void name_streams(RandomDelays* delays) const;
  // Enqueues round `number`; its results go to place number % kInFlight. Input and small stack: number % kVersions.
  void enqueue(int number);
  // Waits for the main stream. The outputs of both layers of the round, [2 * kTokens, kHidden].
  void wait();
  std::vector<uint16_t> result(int number) const;
  // Waits for all streams.
  void drain();
  uint32_t status();

  static constexpr int kInFlight = 6;

 private:
  struct SmallStack {
    device::Buffer gate_up, down;
    moe::DeviceMoeLayer layer;
  };
  struct Owned {
    device::OwnedEvent event = must_event();
    static device::OwnedEvent must_event();
  };

  void make_small_stack(SmallStack* stack);
  void prepare_small(const SmallStack& stack, int version);
  void run(const moe::DeviceMoeLayer& layer, const moe::DeviceBatch& batch, const device::Buffer& workspace, int number,
           int half);

  const StepData& data_;
  device::OwnedStream main_, side_, prepare_, copy_;
  Owned shared_begins_, shared_ends_, staging_ready_, done_;
  std::array<Owned, 2> source_copied_, staging_free_;
  std::array<Owned, 2> stack_free_;  // main -> prepare: the layer that read the stack is done (the test's own order)
  std::array<SmallStack, 2> stacks_;
  device::Buffer staging_, workspace_, small_workspace_, out_, status_;
  device::PinnedBuffer results_;
};

}  // namespace quadrille::testing
