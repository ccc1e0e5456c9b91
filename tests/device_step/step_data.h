// SPDX-License-Identifier: Apache-2.0
// What the engines of the stress test share and only read: Qwen3-30B-A3B's expert stack and a shared expert on the
// device, inputs, and small stacks in page-locked host memory that every round prepares anew.
#pragma once

#include <array>
#include <vector>

#include "device/device.h"
#include "device/device_memory.h"
#include "device/device_stack.h"
#include "moe/device_layer.h"
#include "prepare/device_prepare.h"

namespace quadrille::testing {

inline constexpr int64_t kHidden = 2048, kWidth = 768, kExperts = 128, kTopK = 8, kTokens = 16;
inline constexpr int64_t kSmallExperts = 8, kSmallTopK = 2;
// Inputs and small stacks come in three versions, so that what an earlier round left behind is wrong now.
inline constexpr int kVersions = 3;

struct StepInput {
  const uint16_t* x = nullptr;
  const int32_t *ids = nullptr, *small_ids = nullptr;
  const float *weights = nullptr, *small_weights = nullptr;
};

// The input of a version; made on the device of `stream`, and made the same everywhere.
StepInput make_step_input(int version, Memory* memory, device::Stream stream);

// Canonical matrices of kSmallExperts experts in page-locked memory.
struct HostStack {
  device::PinnedBuffer memory;
  std::vector<prepare::DeviceW4Expert> gate_up, down;
};

class StepData {
 public:
  explicit StepData(device::Stream stream);

  const kernels::DeviceTable& table() const { return *table_; }
  const moe::DeviceMoeLayer& large() const { return large_; }
  const StepInput& input(int version) const { return inputs_[static_cast<size_t>(version)]; }
  prepare::DeviceW4Source gate_up_source(int version) const;
  prepare::DeviceW4Source down_source(int version) const;

 private:
  const kernels::DeviceTable* table_;
  PoolMemory memory_;
  moe::DeviceMoeLayer large_;
  std::array<StepInput, kVersions> inputs_;
  std::array<HostStack, kVersions> small_;
};

}  // namespace quadrille::testing
