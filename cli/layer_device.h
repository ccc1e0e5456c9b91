// SPDX-License-Identifier: Apache-2.0
// The layer of a file on a GPU, for the command `layer`: weights prepared there, one call, or a graph that is timed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/layer_file.h"
#include "core/result.h"

namespace quadrille::cli {

struct DeviceLayerRun {
  std::vector<uint16_t> out;  // [num_tokens, hidden] bf16
  float median_us = 0;        // of the replays; 0 without
  std::string device;
};

// Whether this build and this machine run layers on GPU 0; else the reason.
Status layer_device_available();

// Runs once, then `repeat` times as a graph. Errors: kUnsupported, kCapacity, kInvalidData for scales that are NaN or
// infinite.
Result<DeviceLayerRun> run_layer_on_device(const LayerFile& file, kernels::Numerics numerics, int64_t repeat);

}  // namespace quadrille::cli
