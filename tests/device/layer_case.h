// SPDX-License-Identifier: Apache-2.0
// One MoE layer of the conformance tests: its random weights prepared on the device, calls with any order of the
// tokens, and what the CPU table `hopper` gives for named tokens.
#pragma once

#include <optional>
#include <vector>

#include "core/thread_pool.h"
#include "device/conformance_cases.h"
#include "device/device_memory.h"
#include "device/device_stack.h"
#include "device/hopper_layer.h"
#include "moe/device_layer.h"

namespace quadrille::testing {

// How a call is made. None of it may change a bit of a token's row.
struct Call {
  std::vector<int64_t> keys;  // which token each row is
  moe::DeviceLayerOptions options = {};
  bool junk_ids = false;    // numbers that are no expert where the ids are -1: the same rows, and a status bit
  bool as_ids = false;      // ids and weights, also where the case has logits
  bool side_stream = true;  // false: the shared expert on the main stream
  int graph_replays = 0;    // > 0: captured, and the result of the last replay
  uint8_t workspace_byte = kPoison;
  int64_t max_tokens = 0;  // the workspace is planned for at least these
};

class LayerCase {
 public:
  // Throws what fails; nothing of the machine is asked but the table.
  LayerCase(const LayerSpec& spec, ThreadPool* pool) : LayerCase(spec, pool, std::make_unique<PoolMemory>()) {}
  LayerCase(const LayerSpec& spec, ThreadPool* pool, std::unique_ptr<Memory> memory);

  const LayerSpec& spec() const { return spec_; }
  const moe::DeviceMoeLayer& layer() const { return layer_; }
  const LayerRoutes& routes() const { return routes_; }
  const kernels::DeviceTable& table() const { return *table_; }
  // Runs and returns the rows. `problems`: what is wrong besides bits: unwritten elements, harmed canaries, a status.
  std::vector<uint16_t> run(const Call& call, std::string* problems);
  std::vector<uint16_t> expected(const std::vector<int64_t>& keys) const {
    return hopper_layer(spec_, routes_, keys, pool_);
  }

 private:
  void add_mlp(moe::DeviceMlp* mlp, bool shared);
  moe::DeviceStreams streams(bool side) const;

  LayerSpec spec_;
  ThreadPool* pool_;
  const kernels::DeviceTable* table_;
  device::OwnedStream main_, side_;
  device::OwnedEvent begins_, ends_;
  LayerRoutes routes_;
  std::unique_ptr<Memory> memory_;
  moe::DeviceMoeLayer layer_;
};

}  // namespace quadrille::testing
