// SPDX-License-Identifier: Apache-2.0
// Random weights of a shape in a GPU's memory: codes, scales and bf16 values are windows into pools of random numbers
// there, and the matrices are prepared by the kernel that prepares a checkpoint's. Called by device_model.cpp for
// benchmarks of shapes whose checkpoints nobody wants on disk.
#pragma once

#include <cstdint>

#include "core/result.h"
#include "device/device.h"
#include "kernels/api/device_table.h"
#include "model/device_places.h"
#include "model/model.h"
#include "prepare/device_prepare.h"

namespace quadrille::model {

DeviceModelShape random_device_shape(const ModelConfig& config, const RandomModel& random);
// Device memory beside the weights while they are made.
uint64_t random_device_bytes(const DeviceModelShape& shape);

// Fills `base` on streams.prepare and waits for it. Codes are uniform, scales keep activations near 1, as
// random_weights() makes them on the CPU.
Status make_random_weights(const DeviceModelShape& shape, const WeightPlaces& places, const ModelConfig& config,
                           const RandomModel& random, const LoadOptions& options, const kernels::DeviceTable& table,
                           uint8_t* base, const prepare::PrepareStreams& streams);

}  // namespace quadrille::model
